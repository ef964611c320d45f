"""The recipe of the embedded model: from openly licensed emoji art to a Stable Diffusion, on a CPU.

One module per stage, in the order in which they run: packages, sprites, scenes, tokenizer, vae, latents,
diffusion, export, evaluate. `python -m training --help` lists the commands.
"""
