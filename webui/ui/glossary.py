"""The words of the Illustrated tab: what each panel says, at three depths, and what its terms mean.

In a text ``[[term]]`` or ``[[shown|term]]`` is a term of :data:`GLOSSARY`, and ``{name}`` a number of the
call that is looked at, which ``illustrated_panels.js`` fills in.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

TERM = re.compile(r"\[\[([^\]|]+)(?:\|([^\]]+))?\]\]")  # shown, and the term if that is another
DEPTHS = ("plain", "numbers", "formula")


@dataclass(frozen=True)
class PanelText:
    """What a panel says."""

    title: str
    plain: str
    numbers: str
    formula: str
    sources: tuple[str, ...] = ()


PANELS = {
    "film": PanelText(
        "What does the net see, and what does it believe?",
        "The picture begins as [[noise]]. At each [[call]] the [[net]] is given what there is so far, and "
        "guesses the whole finished picture at once. The [[scheduler]] goes only a little way towards that "
        "guess, and asks again.",
        "Call {call} of {calls}, in step {step}, at [[timestep]] {timestep}. Of what the net is given, "
        "{signal_share} is [[signal]] and {noise_share} is noise, by variance. The upper row is the "
        "[[latents]] in colour, the lower one what the net believed.",
        "The net is given x and says {output}. From that x̂₀ = {x0}, here with a = {signal} and σ = {noise}.",
        ("Ho, Jain and Abbeel 2020, Denoising diffusion probabilistic models, arXiv:2006.11239",),
    ),
    "path": PanelText(
        "Why not jump to the end?",
        "One may stop at any [[call]] and take its guess. An early guess is blurred, as if many pictures "
        "that would fit lay on top of each other. The lines show how much the guess still changes, and how "
        "far it is from the last one.",
        "At call {call} the guess is {distance} away from the last one, and {change}, both in shares of "
        "a guess's own length.",
        "Change: ‖x̂₀(k + 1) − x̂₀(k)‖ / ‖x̂₀(k + 1)‖. Distance: ‖x̂₀(k) − x̂₀(K)‖ / ‖x̂₀(K)‖, where K is the last "
        "call. At call {call}: {change_number} and {distance_number}.",
        ("Karras et al. 2022, Elucidating the design space of diffusion models, arXiv:2206.00364",),
    ),
    "words": PanelText(
        "Where does the net look for each word?",
        "Inside the [[net]], each place of the picture looks at the words of the [[prompt]]: that is called "
        "[[attention]]. Choose a word to see where it is looked at; point at a place to see the words that "
        "it looks at. Attention is not proof: it shows where the net looks, not what a word does.",
        "{when}, {word} gets {share} of all attention, and {peak} at its strongest place. {rest} goes to the "
        "start, the end and the [[padding]] of the prompt, which say nothing by themselves.",
        "A = softmax(q kᵀ / √d) over the [[tokens|token]], the mean over heads and layers; a word of several "
        "tokens has the sum of their maps. The shares of a place sum to 1. Overlap is the cosine of two maps "
        "that are averaged over the calls.",
        (
            "Tang et al. 2022, What the DAAM: interpreting stable diffusion using cross attention, "
            "arXiv:2210.04885",
            "Jain and Wallace 2019, Attention is not explanation, arXiv:1902.10186",
        ),
    ),
    "guidance": PanelText(
        "How hard does the prompt pull?",
        "At each [[call]] the [[net]] guesses twice: with the [[prompt]], and with the [[negative prompt]], "
        "which may be empty. [[Guidance|guidance]] goes from the second guess towards the first, and on "
        "beyond it. Move the slider to see this call at another [[CFG scale]]. The calls before it stay as "
        "they were, so it is not the picture that a run with that scale makes.",
        "Made with CFG scale {scale}. At call {call} the two guesses differ by {size} of the length of the "
        "one without the prompt, and {clipped} of the guided colours are beyond black or white.",
        "guided = u + s (c − u), here with s = {chosen}: 1 is the prompt alone, 0 the negative prompt alone. "
        "The colours are affine in the latents, so the same holds for them before they are cut off.",
        ("Ho and Salimans 2022, Classifier-free diffusion guidance, arXiv:2207.12598",),
    ),
    "bands": PanelText(
        "Do large areas come before details?",
        "Each guess is taken apart into coarse and fine patterns, and each part is compared with the same "
        "part of the last guess: the brighter, the more alike. What comes first here is what was observed "
        "in this run, and no law.",
        "At call {call} the coarsest patterns are alike by {coarse} and the finest by {fine}; 1 is the same, "
        "0 has nothing in common.",
        "Coherence of a band: Re Σ X Ē / √(Σ|X|² Σ|E|²), where X is the Fourier transform of the guess, E "
        "that of the last one, and the sum goes over the frequencies of the band and the channels.",
        (
            "Rissanen, Heinonen and Solin 2022, Generative modelling with inverse heat dissipation, "
            "arXiv:2206.13397",
            "Falck et al. 2025, who train models for which it does not hold, arXiv:2505.11278",
        ),
    ),
    "noise": PanelText(
        "How much is signal, and how much is noise?",
        "What the [[net]] is given is a mixture: some of a picture, and some [[noise]]. The [[scheduler]] "
        "says how it is mixed at each [[call]]. It begins with hardly anything but noise, and ends with "
        "hardly any.",
        "At call {call} the mixture is {signal} of the picture and {noise} of noise. The signal is {snr} "
        "times as strong as the noise, by variance.",
        "x = a x₀ + σ ε, here x = {signal} x₀ + {noise} ε, and SNR = a² / σ² = {snr}.",
        ("Kingma et al. 2021, Variational diffusion models, arXiv:2107.00630",),
    ),
    "arrays": PanelText(
        "What is it all made of?",
        "Whatever the program works on is an [[array]] of numbers: the words, the [[noise]], the picture. "
        "These are the arrays of this run.",
        "The picture has {ratio} times as many numbers as its [[latents]], on which the net works.",
        "Bytes = the product of the shape × the bytes of one number.",
        (
            "Rombach et al. 2022, High-resolution image synthesis with latent diffusion models, "
            "arXiv:2112.10752",
        ),
    ),
    "time": PanelText(
        "Where did the time go?",
        "How long each part of the work took on this machine. Watching takes time too; it does not change "
        "the picture.",
        "{wall} in all. The net took {net}, which is {share} of it, and {each} for each call.",
        "The stages sum to {sum}, and all of it took {wall}.",
    ),
    "script": PanelText(
        "The same picture without this program",
        "This [[script]] does what the program did, with the library [[diffusers]] alone. Copy it, and go on "
        "from there.",
        "It has {lines} lines, and draws its noise from seed {seed}.",
        "Noise: torch.Generator(device).manual_seed({seed}). {lines} lines in all.",
    ),
}

GLOSSARY = {
    "array": "Numbers in rows, columns and more directions. In machine learning it is often called a tensor.",
    "attention": "A part of the net in which each place weighs which words of the prompt matter to it.",
    "call": "One time that the net computes. Most schedulers need one call a step, some two.",
    "CFG scale": "How strongly the picture is pushed towards the prompt and away from the negative prompt.",
    "diffusers": "The open library for Python that this program computes with.",
    "guidance": "Pushing each guess towards the prompt, away from what the net guesses without it.",
    "latents": "The picture as the net works on it: smaller, and with numbers in place of colours. "
    "A decoder, the VAE, turns it into pixels at the end.",
    "negative prompt": "Words for what should not be in the picture. Empty words are allowed.",
    "net": "The neural network. It has learned to tell the picture from the noise in it.",
    "noise": "Random numbers, like the snow of an old television. The seed decides which.",
    "padding": "What fills the prompt up to the length that the net expects.",
    "prompt": "The words that say what should be in the picture.",
    "scheduler": "The rule that turns the guesses of the net into steps, from noise to picture.",
    "script": "A short program in a text file.",
    "signal": "What of the mixture is picture, and not noise.",
    "timestep": "How noisy the net takes its input to be: 999 is nothing but noise, 0 is a clean picture.",
    "token": "A piece of a prompt as the model reads it: a short word, or a part of a longer one.",
}


def terms(text: str) -> list[str]:
    """The terms that a text marks."""
    return [term or shown for shown, term in TERM.findall(text)]


def texts() -> dict[str, object]:
    """For the browser."""
    return {"panels": {name: asdict(panel) for name, panel in PANELS.items()}, "glossary": GLOSSARY}
