import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from webui.diffusion.prompts import CACHED_CHUNKS, Encoder, encode
from webui.errors import InvalidField

POCKET = Path(__file__).parent.parent / "models" / "pocket-model"
WORDS = ("red", "blue", "green", "fox", "cat", "dog", "star", "tree", "house", "lion")  # a token each


@pytest.fixture(scope="module")
def tokenizer():
    """The embedded model's, kept to 32 positions, so that short texts have several chunks: of 30."""
    return CLIPTokenizer.from_pretrained(POCKET / "tokenizer", model_max_length=32)


@pytest.fixture(scope="module")
def long_tokenizer(tokenizer):
    """Chunks of 75, as in every real model."""
    long = copy.deepcopy(tokenizer)
    long.model_max_length = 77
    return long


def tiny(kind, tokenizer, positions=77):
    """A text encoder with random weights and four layers."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=positions,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = kind(config).eval()
    for parameter in model.parameters():  # the initial ones are so small that every text looks alike
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def pocket(tokenizer):
    return Encoder(tokenizer, CLIPTextModel.from_pretrained(POCKET / "text_encoder", dtype=torch.float32))


@pytest.fixture
def long(long_tokenizer):
    return Encoder(long_tokenizer, tiny(CLIPTextModel, long_tokenizer))


@pytest.fixture(params=["pocket", "long"])
def encoder(request):
    return request.getfixturevalue(request.param)


def diffusers_says(encoder, prompt, negative_prompt="", clip_skip=None):
    """What ``encode_prompt`` of a bare pipeline returns: (positive, negative), each (1, L, D)."""
    parts = dict.fromkeys(["vae", "unet", "scheduler", "safety_checker", "feature_extractor"])
    pipe = StableDiffusionPipeline(
        **parts, tokenizer=encoder.tokenizer, text_encoder=encoder.text_encoder, requires_safety_checker=False
    )
    with torch.no_grad():
        return pipe.encode_prompt(prompt, "cpu", 1, True, negative_prompt, clip_skip=clip_skip)


def positive(encoder, prompt, **changes):
    """(1, L, D) of the one prompt at step 0."""
    options = {"negative_prompt": "", "clip_skip": 1, "steps": 20, **changes}
    ((text, weight),) = encode(encoder, prompt, **options).at(0).positives
    assert weight == 1
    return text.tokens


def counted(encoder):
    """A list that grows with every call of the text encoder."""
    calls = []
    encoder.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    return calls


def tokens(count):
    """A text of as many tokens."""
    return " ".join(WORDS[i % 10] for i in range(count))


# -- as diffusers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "negative_prompt"),
    [
        ("a red apple, 3d", ""),
        ("", "blurry, low quality"),
        ("  Two\n spaces\tand a 🦊, naïve…  ", "a  b"),
        ("<|endoftext|> mid <|startoftext|>", "it's 16:9 {x|y}"),
        (tokens(28), tokens(30)),
    ],
)
def test_a_plain_prompt_equals_diffusers_bit_for_bit(encoder, prompt, negative_prompt):
    conditioning = encode(encoder, prompt, negative_prompt, clip_skip=1, steps=20)
    wanted = diffusers_says(encoder, prompt, negative_prompt)
    step = conditioning.at(0)
    assert torch.equal(step.positives[0][0].tokens, wanted[0])
    assert torch.equal(step.negative.tokens, wanted[1])
    assert conditioning.plain


def test_a_chunk_full_to_the_last_place_equals_diffusers(long):
    text = tokens(75)
    assert long.count_tokens(text) == (75, 75)
    assert torch.equal(positive(long, text), diffusers_says(long, text)[0])


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_counts_as_a1111_and_equals_diffusers_where_that_works(long_tokenizer, clip_skip):
    encoder = Encoder(long_tokenizer, tiny(CLIPTextModelWithProjection, long_tokenizer))
    wanted, _ = diffusers_says(encoder, "a fox", clip_skip=clip_skip - 1)
    assert torch.equal(positive(encoder, "a fox", clip_skip=clip_skip), wanted)


def test_clip_skip_takes_the_layer_and_the_final_norm(pocket):
    ids = pocket.tokenizer("a fox", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        states = pocket.text_encoder(ids, output_hidden_states=True).hidden_states
        wanted = pocket.text_encoder.final_layer_norm(states[-2])
    assert torch.equal(positive(pocket, "a fox", clip_skip=2), wanted)
    assert not torch.equal(positive(pocket, "a fox", clip_skip=1), wanted)


@pytest.mark.parametrize("clip_skip", [0, 4, 12])
def test_a_layer_the_encoder_does_not_have_is_refused(pocket, clip_skip):
    with pytest.raises(InvalidField, match=r"Clip skip: must be 1 to 3 ") as refusal:
        encode(pocket, "a", "", clip_skip, 20)
    assert refusal.value.field == "clip_skip"


def test_embeddings_have_the_encoders_dtype_and_no_gradient(tokenizer):
    model = CLIPTextModel.from_pretrained(POCKET / "text_encoder", dtype=torch.bfloat16)
    embeds = positive(Encoder(tokenizer, model), "a (red:1.3) fox")
    assert embeds.dtype == torch.bfloat16
    assert not embeds.requires_grad


# -- chunks ------------------------------------------------------------------------------------------


def test_a_long_text_is_cut_into_chunks_encoded_alone(encoder):
    size = encoder.chunk_size
    text = tokens(2 * size + 3)
    starts = [" ".join(text.split()[i : i + size]) for i in range(0, 2 * size + 3, size)]
    wanted = torch.cat([diffusers_says(encoder, start)[0] for start in starts], dim=1)
    assert torch.equal(positive(encoder, text), wanted)
    assert wanted.shape[1] == 3 * (size + 2)


def test_the_shorter_text_is_padded_with_empty_chunks(pocket):
    conditioning = encode(pocket, tokens(40), "blurry", clip_skip=1, steps=20)
    negative, empty = (diffusers_says(pocket, text)[0] for text in ("blurry", ""))
    assert torch.equal(conditioning.at(0).negative.tokens, torch.cat([negative, empty], dim=1))


def test_a_full_chunk_ends_after_a_near_comma(long):
    near, far = f"{tokens(60)}, {tokens(30)}", f"{tokens(50)}, {tokens(40)}"
    assert torch.equal(positive(long, near), positive(long, f"{tokens(60)}, BREAK {tokens(30)}"))
    start, rest = " ".join(far.split()[:74]), " ".join(far.split()[74:])  # 74 words and a comma
    assert torch.equal(positive(long, far), positive(long, f"{start} BREAK {rest}"))


@pytest.mark.parametrize(("words_before", "in_second_chunk"), [(56, 19), (55, 20), (54, 1)])
def test_a_comma_is_near_within_twenty_tokens(long, words_before, in_second_chunk):
    text = f"{tokens(words_before)}, {tokens(75 - words_before)}"  # 76 tokens
    assert long.count_tokens(text) == (75 + in_second_chunk, 150)


def test_a_comma_that_does_not_fit_begins_the_next_chunk(long):
    text = f"{tokens(70)}, {tokens(4)}, fox"  # the second comma is token 76
    wanted = positive(long, f"{tokens(70)}, {tokens(4)} BREAK , fox")
    assert torch.equal(positive(long, text), wanted)


def test_break_begins_a_new_chunk(pocket):
    wanted = torch.cat([diffusers_says(pocket, text)[0] for text in ("a fox", "in snow")], dim=1)
    assert torch.equal(positive(pocket, "a fox BREAK in snow"), wanted)
    assert torch.equal(positive(pocket, "a fox BREAK in snow BREAK"), wanted)


# -- weights -----------------------------------------------------------------------------------------


def test_weights_of_one_change_no_bit(encoder):
    assert torch.equal(
        positive(encoder, "a (red:1.0) [(fox:1.1)] (in:1) snow"), positive(encoder, "a red fox in snow")
    )


def test_a_weight_scales_its_tokens_and_keeps_the_mean(encoder):
    plain, weighted = positive(encoder, "a red fox"), positive(encoder, "a (red:1.5) fox")
    assert plain.mean() == pytest.approx(weighted.mean().item(), abs=1e-6)
    ratio = (weighted / plain).median(dim=2).values[0]  # one per token: start, a, red, fox, end, ...
    assert ratio[2] / ratio[0] == pytest.approx(1.5, rel=1e-4)
    rest = torch.cat([ratio[:2], ratio[3:]])
    torch.testing.assert_close(rest, ratio[0].expand_as(rest))


def test_a_weight_across_chunks_stays_on_its_tokens(pocket):
    text = f"{tokens(30)} (fox:1.5) tree"
    assert torch.equal(positive(pocket, text)[:, :32], positive(pocket, tokens(30)))
    assert torch.equal(positive(pocket, text)[:, 32:], positive(pocket, "(fox:1.5) tree"))


@pytest.mark.parametrize("weight", [-100, -1, 0, 0.001, 100])
@pytest.mark.parametrize("text", ["a (fox:{})", "(" + tokens(30) + ":{})"])
def test_any_weight_gives_embeddings_a_net_can_take(encoder, text, weight):
    embeds = positive(encoder, text.format(weight))
    assert embeds.isfinite().all()
    assert embeds.abs().max() <= 100 * 100 * positive(encoder, text.format(1)).abs().max()


def test_a_mean_of_the_other_sign_is_left_alone(pocket):
    """A1111 would restore it, and turn every token's embedding round."""
    plain, weighted = (positive(pocket, f"({tokens(30)}:{w})") for w in (1, -100))
    assert plain.mean() * weighted.mean() < 0
    assert torch.equal(weighted[:, [0, 31]], plain[:, [0, 31]])


# -- over the steps ----------------------------------------------------------------------------------


def test_a_schedule_changes_the_embeddings_at_its_step(pocket):
    conditioning = encode(pocket, "a [cat:dog:5]", "", clip_skip=1, steps=20)
    cat, dog = positive(pocket, "a cat"), positive(pocket, "a dog")
    for step in range(20):
        assert torch.equal(conditioning.at(step).positives[0][0].tokens, cat if step < 5 else dog)
    assert not conditioning.plain


def test_the_second_pass_goes_on_where_the_first_ended(pocket):
    first = encode(pocket, "[cat:dog:25]", "", clip_skip=1, steps=20)
    second = encode(pocket, "[cat:dog:25]", "", clip_skip=1, steps=10, steps_before=20)
    assert torch.equal(first.at(19).positives[0][0].tokens, positive(pocket, "cat"))
    assert torch.equal(second.at(4).positives[0][0].tokens, positive(pocket, "cat"))
    assert torch.equal(second.at(5).positives[0][0].tokens, positive(pocket, "dog"))
    assert first.plain


def test_a_schedule_in_the_negative_prompt_counts_too(pocket):
    conditioning = encode(pocket, "cat", "[red|blue]", clip_skip=1, steps=4)
    assert torch.equal(conditioning.at(3).negative.tokens, positive(pocket, "blue"))
    assert not conditioning.plain


def test_all_embeddings_of_a_run_have_one_length(pocket):
    conditioning = encode(pocket, f"[{tokens(70)}:a:2] AND b", "[|c]", clip_skip=1, steps=4)
    shapes = {
        text.tokens.shape
        for step in conditioning.steps
        for text in (step.negative, *(text for text, _ in step.positives))
    }
    assert shapes == {(1, 3 * 32, 192)}


def test_composed_prompts_come_with_their_weights(pocket):
    conditioning = encode(pocket, "cat AND dog :-0.5", "red AND blue", clip_skip=1, steps=4)
    (cat, one), (dog, half) = conditioning.at(0).positives
    assert (one, half) == (1, -0.5)
    assert torch.equal(cat.tokens, positive(pocket, "cat"))
    assert torch.equal(dog.tokens, positive(pocket, "dog"))
    assert torch.equal(conditioning.at(0).negative.tokens, positive(pocket, "red and blue"))
    assert not conditioning.plain


def test_each_distinct_text_is_encoded_once(pocket):
    calls = counted(pocket)
    encode(pocket, "[cat|dog] AND cat", "dog", clip_skip=1, steps=50)
    assert len(calls) == 2
    encode(pocket, "dog", "cat", clip_skip=1, steps=7)
    assert len(calls) == 2
    encode(pocket, "dog", "(cat:1.1)", clip_skip=1, steps=7)
    assert len(calls) == 3
    encode(pocket, "dog", "cat", clip_skip=2, steps=7)
    assert len(calls) == 5


def test_the_cache_forgets_what_was_not_used_for_longest(pocket):
    others = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS][: CACHED_CHUNKS - 1]
    for text in ("cat", "dog", *others[1:], "cat", others[0]):  # one text too many for the cache
        positive(pocket, text, negative_prompt=text)
    calls = counted(pocket)
    positive(pocket, "cat", negative_prompt="cat")
    assert len(calls) == 0
    positive(pocket, "dog", negative_prompt="dog")
    assert len(calls) == 1


# -- refusals and counts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "field"),
    [
        (("🦊" * 20_000, ""), "prompt"),
        (("", "🦊" * 20_000), "negative_prompt"),
        (("[a|b|c|d|e|f|g|h|i|j]" + " BREAK" * 150, ""), "prompt"),
        (("(a:101)", ""), "prompt"),
        (("", "<lora:ink:1>"), "negative_prompt"),
    ],
)
def test_a_prompt_that_cannot_be_encoded_is_refused_before_any_work(pocket, prompts, field):
    calls = counted(pocket)
    with pytest.raises(InvalidField) as refusal:
        encode(pocket, *prompts, clip_skip=1, steps=20)
    assert refusal.value.field == field
    assert not calls


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", (0, 75)),
        ("one two", (2, 75)),
        ("(one:1.3) [two] # three", (4, 75)),
        (tokens(75), (75, 75)),
        (tokens(76), (76, 150)),
        ("one BREAK two", (76, 150)),
        ("[one two three:one:0.5]", (3, 75)),
        ("one AND two three", (2, 75)),
        ("[one|two three]", (2, 75)),
    ],
)
def test_tokens_are_counted_as_they_will_be_encoded(long, text, count):
    assert long.count_tokens(text) == count


def test_a_prompt_that_would_be_refused_still_has_a_count(long):
    assert long.count_tokens("<lora:x:1> (red:1000)")[1] == 75


def test_and_and_its_weight_are_words_when_a_negative_prompt_is_counted(long):
    assert long.count_tokens("red AND blue", compose=False) == (3, 75)


def test_the_room_of_a_chunk_is_the_smaller_of_tokenizer_and_encoder(tokenizer, long_tokenizer):
    short = tiny(CLIPTextModel, tokenizer, positions=24)
    assert Encoder(tokenizer, tiny(CLIPTextModel, tokenizer)).count_tokens("red") == (1, 30)
    assert Encoder(long_tokenizer, short).count_tokens("red") == (1, 22)
