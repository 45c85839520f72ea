"""The names that authors gave their files, by SHA-256 of the whole file: what users call them may say nothing.

LCM-LoRAs are published as pytorch_lora_weights.safetensors, all of them. Hashes as github.com/finegrain-ai/refiners
(conversion/models/loras.py) and github.com/darkshapes/MIR list them; of PCM, whose lists give two files one description, none.
"""

from __future__ import annotations

LARGEST = 2 * 2**30
"""Bytes. No file of the table is larger."""

PUBLISHED: dict[str, str] = {
    "8f90d840e075ff588a58e22c6586e2ae9a6f7922996ee6649a7f01072333afe4": "lcm-lora-sdv1-5",
    "a764e6859b6e04047cd761c08ff0cee96413a8e004c9f07707530cd776b19141": "lcm-lora-sdxl",
    "7adaaa69db6f011058a19fd1d5315fdf19ef79fcd513cdab30e173833fd5c59b": "lcm-lora-ssd-1b",
    "bf56cf2657efb15e465d81402ed481d1e11c4677e4bcce1bc11fe71ad8506b79": "sdxl_lightning_4step_lora",
    "c912df184c5116792d2c604d26c6bc2aa916685f4a793755255cda1c43a3c78a": "Hyper-SDXL-1step-lora",
    "69b25c0187ced301c3603c599c0bc509ac99b8ac34db89a2aecc3d5f77a35187": "Hyper-SDXL-2steps-lora",
    "12f81a27d00a751a40d68fd15597091896c5a90f3bd632fb6c475607cbdad76e": "Hyper-SDXL-4steps-lora",
    "ca689190e8c46038550384b5675488526cfe5a40d35f82b27acb75c100f417c1": "Hyper-SDXL-8steps-lora",
    "55b51334c85061afff5eff7c550b61963c8b8607a5868bbe4f26db49374719b1": "Hyper-SDXL-8steps-CFG-lora",
    "0b97f447b5878323a28fbe7c51ba7acebd21f4d77552ba77b04b11c8911825b6": "Hyper-SDXL-12steps-CFG-lora",
    "a04fd9a535c1e56d38f7590ee72a13fd5ca0409853b4fff021e5a9482cf1ca3b": "Hyper-SD15-1step-lora",
    "2f26dcc1d883feb07557a552315baae2ca2a04ac08556b08a355a244547e8c3a": "Hyper-SD15-2steps-lora",
    "c5dd058616461ed5053e2b14eec4dbe3fa0eea3b13688642f6d6c80ea2ba5958": "Hyper-SD15-4steps-lora",
    "91fc3186236e956d64dbb4357f2e120c69b968b78af7d2db9884a5ca74d3cd13": "Hyper-SD15-8steps-lora",
    "f6123d5b950d5250ab6c33600e27f4dcf71b3099ebf888685e01e9e8117ce482": "Hyper-SD15-8steps-CFG-lora",
    "64b98437383537cd968fda6f87a05c33160ece9c79ff4757949a1e212ff78361": "Hyper-SD15-12steps-CFG-lora",
    "e0ab0fdf569cd01a382f19bd87681f628879dea7ad51fe5a3799b6c18c7b2d03": "Hyper-FLUX.1-dev-8steps-lora",
    "6461f67dfc1a967ae60344c3b3f350877149ccab758c273cc37f5e8a87b5842e": "Hyper-FLUX.1-dev-16steps-lora",
    "0ee4e529abd17b06d4295e3bb91c0d4ddae393afad86b2b43c4f5eeb9e401602": "Hyper-SD3-4steps-CFG-lora",
    "fc6a3e73e14ed11e21e4820e960d7befcffe7e333850ada9545f239e9aa6027e": "Hyper-SD3-8steps-CFG-lora",
    "5b4d0b99d58deb811bdbbe521a06f4dbf56a2e9148ff3211c594e0502b656bc9": "Hyper-SD3-16steps-CFG-lora",
    "2c777bc60abf41d3eb0fe405d23d73c280a020eea5adf97a82a141592c33feba": "TCD-SDXL-LoRA",
}
