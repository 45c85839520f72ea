"""Few-step sampling in pure torch: noise families, schedules and samplers over a denoiser D(x, sigma) -> x0."""
