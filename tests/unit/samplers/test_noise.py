import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily, guided, solved_x0
from gaussian import FAMILIES

SIGMA, SIGMA_NEXT = torch.tensor([0.9, 0.5, 0.7]), torch.tensor([0.4, 0.1, 0.6])


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 4, 5, 5, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_deterministic_jump_keeps_the_noise(family, tensors):
    """With the true x0, going down the ODE is the same noise at another level: a wrong sign or level shows here."""
    x0, noise, _ = tensors
    x = family.add_noise(x0, noise, sigma=SIGMA)
    landed = family.jump(x, x0, sigma=SIGMA, sigma_next=SIGMA_NEXT)
    torch.testing.assert_close(landed, family.add_noise(x0, noise, sigma=SIGMA_NEXT), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gamma", [0.3, 0.8, 1.0])
def test_gamma_mixes_old_and_fresh_noise_at_unit_variance(family, gamma, tensors):
    x0, noise, fresh = tensors
    x = family.add_noise(x0, noise, sigma=SIGMA)
    landed = family.jump(x, x0, sigma=SIGMA, sigma_next=SIGMA_NEXT, gamma=gamma, noise=fresh)
    mixed = (1.0 - gamma**2) ** 0.5 * noise + gamma * fresh
    torch.testing.assert_close(landed, family.add_noise(x0, mixed, sigma=SIGMA_NEXT), atol=2e-6, rtol=1e-5)


def test_trajectory_models_go_down_then_up(tensors):
    """CTM, Algorithm 3: deterministically to sqrt(1 - gamma^2) sigma_next, then gamma sigma_next of fresh noise."""
    x0, noise, fresh = tensors
    gamma, family = 0.6, NoiseFamily.VARIANCE_EXPLODING
    x = family.add_noise(x0, noise, sigma=SIGMA)
    down = family.jump(x, x0, sigma=SIGMA, sigma_next=(1 - gamma**2) ** 0.5 * SIGMA_NEXT)
    expected = down + gamma * SIGMA_NEXT.reshape(3, 1, 1, 1) * fresh
    landed = family.jump(x, x0, sigma=SIGMA, sigma_next=SIGMA_NEXT, gamma=gamma, noise=fresh)
    torch.testing.assert_close(landed, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_in_inverts_add_noise(family, tensors):
    x0, noise, _ = tensors
    x = family.add_noise(x0, noise, sigma=SIGMA)
    torch.testing.assert_close(family.noise_in(x, x0, sigma=SIGMA), noise, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_solved_x0_makes_one_step_land_where_it_should(family, tensors):
    x_t, x_s, _ = tensors
    x0 = solved_x0(x_t, x_s, sigma_t=SIGMA, sigma_s=SIGMA_NEXT)
    torch.testing.assert_close(family.jump(x_t, x0, sigma=SIGMA, sigma_next=SIGMA_NEXT), x_s, atol=1e-5, rtol=1e-5)


def test_solved_x0_is_the_secant_and_exact_at_the_end(tensors):
    x_t, x_s, _ = (t.double() for t in tensors)
    t, s = SIGMA.double(), SIGMA_NEXT.double()
    wide = (3, 1, 1, 1)
    secant = x_t - t.reshape(wide) * (x_s - x_t) / (s - t).reshape(wide)
    torch.testing.assert_close(solved_x0(x_t, x_s, sigma_t=t, sigma_s=s), secant, atol=1e-12, rtol=1e-12)
    assert torch.equal(solved_x0(x_t, x_s, sigma_t=t, sigma_s=torch.zeros(3).double()), x_s)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_has_the_variance_of_noised_unit_data(family, tensors):
    noise = tensors[0]
    sigma = torch.tensor(1.0 if family is NoiseFamily.FLOW else 3.0)
    expected = 1.0 if family is NoiseFamily.FLOW else 10.0**0.5
    torch.testing.assert_close(family.initial(noise, sigma=sigma), expected * noise)


@pytest.mark.parametrize(
    ("gamma", "noise", "named"), [(1.5, True, "1.5"), (-0.1, True, "-0.1"), (0.5, False, "noise is None")]
)
def test_a_jump_refuses_what_it_cannot_do(gamma, noise, named, tensors):
    x, x0, fresh = tensors
    with pytest.raises(ValueError, match=named):
        NoiseFamily.FLOW.jump(x, x0, sigma=SIGMA, sigma_next=SIGMA_NEXT, gamma=gamma, noise=fresh if noise else None)


def test_guidance_extrapolates_from_the_empty_prompt():
    seen = []

    def denoiser(x, sigma, y):
        seen.append(y)
        return x * 0 + y

    x, y = torch.zeros(2, 1), torch.tensor([[3.0], [4.0]])
    out = guided(denoiser, guidance_scale=2.0, unconditional={"y": torch.tensor([[1.0]])})(x, torch.ones(2), y=y)
    torch.testing.assert_close(out, torch.tensor([[5.0], [7.0]]))
    assert len(seen) == 2
    assert guided(denoiser, guidance_scale=1.0, unconditional={}) is denoiser
