"""Training the embedded pair: VAE, text encoder, large UNet, then the small UNet distilled from it.

Run it with `python -m obclip.export.recipe --data DIR --out DIR`. Each stage writes checkpoints and resumes from
them; the result is two ordinary diffusers folders that share a text encoder, a VAE and therefore a latent space.
"""
