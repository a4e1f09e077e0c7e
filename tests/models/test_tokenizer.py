"""The tokenizer against the CLIPTokenizer of transformers, built from the same files."""

import itertools
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from gradina.errors import WeightsError
from gradina.models.bpe import BOS, EOS
from gradina.models.tokenizer import Tokenizer

CAT = [49406, 320, 1125, 539, 320, 2368, 49407]

SUBJECTS = [
    "a photo of a cat",
    "The Quick BROWN fox",
    "portrait of Ada Lovelace",
    "Москва зимой",
    "北京的秋天",
    "東京タワー",
]
STYLES = [
    ", oil on canvas",
    " -- 4k, 8K, (masterpiece:1.2)",
    "!!!",
    " 🎨🖌️",
    "  by   Greg\tRutkowski\n",
    "'s dog isn't they're",
]
TEMPLATES = ["{}{}", "{}{} 1234567890", "“{}”{}…", "<lora:x:0.5> {}{}", "{}{} <|endoftext|> after", "## {} ## {} ##"]
ODD = [
    "", " ", "\n\n\t", "!", "!!", "! ! !", "don't DON'T Don’t 'S 'll'VE", "I'd we'll it's '' '", "naïve café",
    "cafe\u0301", "Å Å", "ﬁ ﬀ ½ ² ①", "İstanbul ıI ß ẞ", "Σίσυφος ὈΔΥΣΣΕΎΣ", "ǅ ŉ K Ω", "aͅᾼ", "한국어 한국어",
    "\u05e2\u05d1\u05e8\u05d9\u05ea \u0645\u0631\u062d\u0628\u0627 हिन्दी ไทย", "\u0663\u0664\u0665 ５６", "½cup",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1e7\U0001f1ec \U0001f44d\U0001f3fd", "\u200b\u200d\ufeff",
    "a\u00a0b\u2003c\u3000d", "\x00\x01\x7f", "&amp; &lt;b&gt; &#39;", "â€™ mojibake", "1,000.50€ 10% $5",
    "http://example.org/?q=a&b=c#d", "foo_bar-baz.qux", "C++ C# .NET", "</w> w</w>", "<|startoftext|>",
    "<|endoftext|>", "<|ENDOFTEXT|> x", "x<|endoftext|>y", "<|endoftext", "a" * 400, "word " * 300, "!" * 200,
    "日" * 100, "🎉" * 60, "x" + "\u0301" * 20, "\U0010ffff \ue000 \ufffd", "one\r\ntwo\u2028three\x85four",
]  # fmt: skip
PROMPTS = ODD + [template.format(*pair) for template in TEMPLATES for pair in itertools.product(SUBJECTS, STYLES)]

CAPTIONS = [
    f"{article} {style} {noun}"
    for article in ("a", "the", "one more")
    for style in ("handwritten", "scrawled", "neat", "BOLD")
    for noun in ("seven", "digit 7", "eight", "digit 8", "three", "digit 3")
]


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer.clip()


@pytest.fixture(scope="module")
def clip2() -> Tokenizer:
    return Tokenizer.clip(pad=0)


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, size=550, length=16)


@pytest.fixture(scope="module", params=["clip", "clip2", "own"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, CLIPTokenizer]:
    """A tokenizer and the reference, loaded from the folder that it saved."""
    tokenizer, folder = request.getfixturevalue(request.param), tmp_path_factory.mktemp(request.param)
    tokenizer.save(folder)
    return tokenizer, CLIPTokenizer.from_pretrained(folder)


def theirs(reference: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    return reference(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


# Anchors


def test_the_shipped_vocabulary_is_clips(clip: Tokenizer) -> None:
    assert (len(clip), clip.length, clip.bos, clip.eos, clip.pad) == (49408, 77, 49406, 49407, 49407)
    assert clip(["a photo of a cat"]).tolist() == [CAT + [49407] * 70]
    assert clip.ids("a photo of a cat") == CAT[1:-1]


def test_stable_diffusion_2_pads_with_the_exclamation_mark(clip: Tokenizer, clip2: Tokenizer) -> None:
    assert clip2(["a photo of a cat"]).tolist() == [CAT + [0] * 70]
    assert clip2.ids("cat!!! x") == [2368, 0, 0, 0, 343]  # as in diffusers, where the padding is a special token
    assert clip.ids("cat!!! x") == [2368, 995, 343]


def test_importing_and_counting_do_not_import_torch() -> None:
    code = (
        "import sys; from gradina.models.tokenizer import Tokenizer; Tokenizer.clip().ids('a'); 'torch' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", f"{code} and sys.exit(1)"]).returncode == 0


# The reference


def test_same_ids_as_transformers(pair: tuple[Tokenizer, CLIPTokenizer]) -> None:
    tokenizer, reference = pair
    assert len(PROMPTS) > 250
    for prompt in PROMPTS:
        assert tokenizer.ids(prompt) == reference(prompt, add_special_tokens=False).input_ids, prompt
        assert tokenizer.decode(tokenizer.ids(prompt)) == reference.decode(
            reference(prompt).input_ids, skip_special_tokens=True
        )
    assert torch.equal(tokenizer(PROMPTS), theirs(reference, PROMPTS))
    assert reference.model_max_length == tokenizer.length
    assert (reference.bos_token_id, reference.eos_token_id, reference.pad_token_id) == (
        tokenizer.bos,
        tokenizer.eos,
        tokenizer.pad,
    )
    assert len(reference) == len(tokenizer)


@given(text=st.text() | st.text(alphabet="aA'st .,!\n\u0301é1<|>/w7日🎉"))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_has_the_same_ids_as_in_transformers(pair: tuple[Tokenizer, CLIPTokenizer], text: str) -> None:
    tokenizer, reference = pair
    assert torch.equal(tokenizer([text]), theirs(reference, [text]))
    assert tokenizer.ids(text) == reference(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("layout", ["hub", "hub, pad !", "modern", "bare", "tokenizer.json", "added", "added, modern"])
def test_other_folders_load_as_in_transformers(clip: Tokenizer, tmp_path: Path, layout: str) -> None:
    clip.save(tmp_path)
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = {"content": BOS, **flags}, {"content": EOS, **flags}
    typed = {"__type": "AddedToken"}
    config = {
        "bos_token": typed | start, "eos_token": typed | end, "unk_token": typed | end, "pad_token": EOS,
        "model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True,
    }  # fmt: skip
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": "!" if "!" in layout else EOS}
    if layout in ("hub", "hub, pad !", "added"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    if layout == "added":
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<dog>": 49409, "<cat-toy>": 49408}))
    if layout == "bare":
        (tmp_path / "tokenizer_config.json").unlink()
        (tmp_path / "special_tokens_map.json").unlink()
    if layout in ("modern", "tokenizer.json", "added, modern"):
        reference = CLIPTokenizer.from_pretrained(tmp_path)
        reference.add_tokens(["<cat-toy>", "<dog>"] if layout == "added, modern" else [])
        reference.save_pretrained(tmp_path)
    if layout in ("tokenizer.json", "added, modern"):
        (tmp_path / "vocab.json").unlink()
        (tmp_path / "merges.txt").unlink()
    reference, tokenizer = CLIPTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    prompts = [*PROMPTS, "a <cat-toy> and a<DOG>!"]
    ours = [tokenizer.ids(prompt) for prompt in prompts]
    assert ours == [reference(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    assert (len(reference), reference.pad_token_id) == (len(tokenizer), tokenizer.pad)
    tokenizer.save(tmp_path / "again")
    again, reread = Tokenizer.load(tmp_path / "again"), CLIPTokenizer.from_pretrained(tmp_path / "again")
    assert ours == [again.ids(prompt) for prompt in prompts]
    assert ours == [reread(prompt, add_special_tokens=False).input_ids for prompt in prompts]


# Chunks


def test_one_chunk_equals_the_plain_encoding(clip: Tokenizer, clip2: Tokenizer) -> None:
    short = [prompt for prompt in PROMPTS if len(clip.ids(prompt)) <= 75 and len(clip2.ids(prompt)) <= 75]
    for tokenizer in (clip, clip2):
        assert torch.equal(tokenizer.chunks(short), tokenizer(short)[:, None])


@given(texts=st.lists(st.text(alphabet="ab 7!'é日", max_size=60), max_size=4))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_hold_every_token_in_order(own: Tokenizer, texts: list[str]) -> None:
    chunks, room = own.chunks(texts), own.length - 2
    longest = max([0, *(len(own.ids(text)) for text in texts)])
    assert chunks.shape == (len(texts), max(1, -(-longest // room)), own.length)
    assert chunks.dtype == torch.int64
    empty = own([""])[0]
    for text, rows in zip(texts, chunks, strict=True):
        ids = own.ids(text)
        for i, row in enumerate(rows.tolist()):
            piece = ids[i * room : (i + 1) * room]
            assert row == [own.bos, *piece, own.eos] + [own.pad] * (room - len(piece))
            assert piece or row == empty.tolist()
    assert torch.equal(own(texts), chunks[:, 0])


def test_shapes_of_no_one_and_many_texts(own: Tokenizer) -> None:
    assert own([]).shape == (0, 16)
    assert own.chunks([]).shape == (0, 1, 16)
    assert own("a seven").tolist() == own(["a seven"]).tolist()
    assert own(("a", "b")).is_contiguous()


# Learned vocabularies


def test_training_does_not_depend_on_the_order_of_captions() -> None:
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert pickle.dumps(vocabulary(Tokenizer.train(CAPTIONS, 600))) == pickle.dumps(
        vocabulary(Tokenizer.train(iter(shuffled), 600))
    )


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer._engine.id_to_token(i) for i in range(len(tokenizer))]


def test_a_learned_vocabulary_has_clips_form(clip: Tokenizer, own: Tokenizer) -> None:
    tokens = vocabulary(own)
    assert tokens[:512] == vocabulary(clip)[:512]
    assert tokens[-2:] == [BOS, EOS]
    assert len(own) == len(set(tokens)) == 550
    assert len(own.ids("a handwritten seven")) < len("a handwritten seven") / 2


def test_a_small_vocabulary_encodes_any_text() -> None:
    smallest = Tokenizer.train([], 514)
    assert len(smallest) == 514
    assert smallest.decode(smallest.ids("Größe 七 🎉, isn't it")) == "größe 七 🎉, isn 't it"
    assert len(Tokenizer.train(["x y"], 4000)) == 514  # nothing occurs twice


def test_decoding_leaves_out_special_tokens(clip: Tokenizer) -> None:
    assert clip.decode(clip(["A  Photo of a CAT"])[0]) == "a photo of a cat"
    assert clip.decode([]) == ""


def test_a_lone_surrogate_becomes_a_question_mark(clip: Tokenizer) -> None:
    assert clip.ids("caf\udce9") == clip.ids("caf?")


def test_a_tokenizer_survives_pickling(own: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(own))
    assert torch.equal(copy(PROMPTS), own(PROMPTS))


# Mistakes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Tokenizer.train([], 513), "513 is too small: use 514"),
        (lambda: Tokenizer.train([], 514, length=2), "context length of 2"),
        (lambda: Tokenizer.clip(pad=49408), "pad id 49408"),
    ],
)
def test_invalid_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", None, "vocab.json: there is no such file"),
        ("merges.txt", None, "merges.txt: cannot be read"),
        ("vocab.json", "{", "vocab.json: is no JSON"),
        ("vocab.json", "[" * 100_000, "vocab.json: is no JSON"),
        ("vocab.json", "[1]", "vocab.json: expected a JSON object, got list"),
        ("vocab.json", '{"a": "b"}', "vocab.json: expected a vocabulary"),
        ("vocab.json", '{"a": -1}', "vocab.json: expected a vocabulary"),
        ("vocab.json", '{"a": 1, "b": 1}', "vocab.json: two tokens have the same id"),
        ("vocab.json", '{"a": 1}', "do not fit together"),
        ("vocab.json", '{"a": 99999999999}', "do not fit together"),
        ("vocab.json", b"\xff\xfe\x00", "vocab.json: is no JSON"),
        ("merges.txt", "#version: 0.2\na b c\n", "merges.txt: merge 2 is 'a b c'"),
        ("merges.txt", "qq zz\n", "do not fit together"),
        ("tokenizer.json", "{}", "tokenizer.json: has no byte-pair model"),
        ("tokenizer.json", '{"model": {"end_of_word_suffix": "</w>", "vocab": {}}}', "expected a list of merges"),
        (
            "tokenizer.json",
            '{"model": {"end_of_word_suffix": "</w>", "merges": [[1, 2]], "vocab": {}}}',
            "fit together",
        ),
        ("tokenizer.json", '{"model": {"end_of_word_suffix": "</w>", "merges": []}}', "expected a vocabulary"),
        (
            "tokenizer.json",
            '{"model": {"end_of_word_suffix": "</w>", "merges": [], "vocab": {}}, "added_tokens": [1]}',
            "",
        ),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: expected a JSON object"),
        ("tokenizer_config.json", '{"model_max_length": "77"}', "model_max_length is '77'"),
        ("tokenizer_config.json", '{"model_max_length": 2}', "model_max_length is 2"),
        ("tokenizer_config.json", '{"pad_token": 7}', "tokenizer_config.json: 7 is no token"),
        ("tokenizer_config.json", '{"pad_token": ""}', "fit together"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "fit together"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "fit together"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"7": {"content": "<new>"}}}', "'<new>' cannot have id 7"),
        ("special_tokens_map.json", "nonsense", "special_tokens_map.json: is no JSON"),
    ],
)
def test_malformed_files_are_named_in_one_line(
    own: Tokenizer, tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    own.save(tmp_path)
    for other in {"tokenizer_config.json", "special_tokens_map.json"} - {name}:
        (tmp_path / other).unlink()
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WeightsError) as caught:
        Tokenizer.load(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_length_is_77(own: Tokenizer, tmp_path: Path) -> None:
    own.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for length in ({"model_max_length": 10**30}, {}):
        del config["model_max_length"]
        config |= length
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        assert Tokenizer.load(tmp_path).length == 77
