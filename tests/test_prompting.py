"""A language model over a set of prompts: what is read, what is refused, and the command that runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tiny_lm import Rows, model, tokenizer, transformers
from typer.testing import CliRunner

import interlatent_live as il
from interlatent_live import smollm2, texts
from interlatent_live.cli import app
from interlatent_live.prompting import SHIPPED, Given, Loaded, load, read_prompts, tokenised
from interlatent_live.stream.errors import AgentError, PromptError, TapError, UnknownTapPoint


def saved(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    model().save_pretrained(made)
    tokenizer().save_pretrained(made)
    return made


def loaded() -> Loaded:
    return Loaded(model(), tokenizer(), "tiny", 128)


def test_jsonl_and_csv_give_text_and_labels(tmp_path: Path) -> None:
    jsonl, csv = tmp_path / "a.jsonl", tmp_path / "a.csv"
    jsonl.write_text('{"text": "the cat", "topic": "pets", "n": 3}\n\n"a dog"\n{"prompt": "fuel", "labels": {"topic": "physics"}}\n')
    csv.write_text('text,topic\nthe cat,pets\n"a dog, sat",\n')
    assert [(g.text, g.labels) for g in read_prompts(jsonl)] == [
        ("the cat", {"topic": "pets", "n": "3"}), ("a dog", {}), ("fuel", {"topic": "physics"}),
    ]  # fmt: skip
    assert [(g.text, g.labels) for g in read_prompts(csv)] == [("the cat", {"topic": "pets"}), ("a dog, sat", {})]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\n\xff\xfe\x00binary\n', "line 2: byte 0 (0xff) is no UTF-8 text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\x00"}\n', "line 2: a zero byte"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: this is no JSON"),
        ("a.jsonl", b"[1]\n", "line 1: a list stands there"),
        ("a.jsonl", b'{"topic": "x"}\n', "line 1: `text` is missing"),
        ("a.jsonl", b'{"text": ""}\n', "line 1: `text` is empty"),
        ("a.jsonl", b'{"text": "  "}\n', "line 1: `text` is '  '"),
        ("a.jsonl", b'{"text": "a", "topic": {"b": 1}}\n', "label 'topic' is a dict"),
        ("a.jsonl", b"\n\n", "holds no prompt"),
        ("a.csv", b"text,topic\na,b,c\n", "line 2: more fields"),
        ("a.csv", b"words\na\n", "line 2: `text` is missing"),
    ],
)
def test_a_bad_file_is_refused_by_its_line(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError) as error:
        read_prompts(tmp_path / name)
    assert said in str(error.value)


def test_a_prompt_must_fit_the_model() -> None:
    with pytest.raises(PromptError, match="a prompt of 200 tokens; the context of tiny is 128"):
        tokenised(loaded(), [Given("cat " * 200, place="a.jsonl, line 7")])
    with pytest.raises(PromptError, match="no token"):
        tokenised(loaded(), [Given("</s>")])
    with pytest.raises(PromptError, match="no chat template"):
        tokenised(loaded(), [Given("cat")], chat=True)
    assert tokenised(loaded(), [Given("the cat"), Given("soup")]) == [[4, 6], tokenizer()("soup")["input_ids"]]


def test_what_is_no_language_model_or_not_its_own_tokenizer_is_refused(tmp_path: Path) -> None:
    made, tok = model(), tokenizer()
    with pytest.raises(UnknownTapPoint, match=r"model\.layers\.1\.mlp"):
        il.Tap(made, "model.layers.11.mlp", tokenizer=tok)
    with pytest.raises(TapError, match="another model's"):
        il.Tap(transformers.LlamaForCausalLM(transformers.LlamaConfig(**(made.config.to_dict() | {"vocab_size": 40}))), tokenizer=tok)
    with pytest.raises(TapError, match="another model's"):
        il.Tap(transformers.LlamaForCausalLM(transformers.LlamaConfig(**(made.config.to_dict() | {"vocab_size": 4000}))), tokenizer=tok)
    with pytest.raises(TapError, match="no head"):
        il.Tap(made.model, tokenizer=tok)
    bart = transformers.BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    with pytest.raises(TapError, match="encoder-decoder"):
        il.Tap(transformers.BartForConditionalGeneration(bart), tokenizer=tok)
    bert = transformers.BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(TapError, match="no model that writes from left to right"):
        il.Tap(transformers.BertForMaskedLM(bert), tokenizer=tok)
    with pytest.raises(TapError, match="num_envs"):
        il.Tap(made, tokenizer=tok, num_envs=2)
    tap = il.Tap(made.model.layers[0], ":out")
    with pytest.raises(TapError, match="tokenizer"):
        tap.prompt("x")
    with pytest.raises(AgentError, match="is no directory"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AgentError, match="cannot be loaded"):
        load(tmp_path / "empty")


def test_the_command_runs_prompts(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"text": "the cat sat", "topic": "pets"}\n{"text": "the rocket flies and burns", "topic": "physics"}\n')
    record = tmp_path / "r.mcap"
    given = ["run", "lm", "--model", str(saved(tmp_path)), "--prompts", str(prompts), "--label", "set=a", "--record", str(record)]
    given += ["--max-new-tokens", "5", "--batch", "2", "--bind", "tcp://127.0.0.1:*", "--json"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    rows = Rows(record)
    assert told["frames"] == len(rows["token"])
    assert [(p.text, p.labels) for p in rows.prompts] == [
        ("the cat sat", {"topic": "pets", "set": "a"}), ("the rocket flies and burns", {"topic": "physics", "set": "a"}),
    ]  # fmt: skip
    assert rows["position"].max() <= 8
    for bad in (["--temperature", "-1"], ["--prompt", "x"], ["--label", "x"], ["--batch", "0"]):
        assert CliRunner().invoke(app, [*given, *bad]).exit_code == 2


def test_the_prompts_that_ship_are_of_four_topics() -> None:
    found = read_prompts(SHIPPED)
    assert len(found) == 48
    topics = [given.labels["topic"] for given in found]
    assert {topic: topics.count(topic) for topic in set(topics)} == {"physics": 12, "cooking": 12, "music": 12, "law": 12}


def test_the_texts_are_prose_and_the_same_each_time(tmp_path: Path) -> None:
    assert texts.write_texts(tmp_path / "a.jsonl", 50) == texts.write_texts(tmp_path / "b.jsonl", 50) > 50 * 150
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert {given.labels["source"] for given in read_prompts(tmp_path / "a.jsonl")} == {"python-docs", "sklearn-datasets"}


@pytest.mark.slow
def test_smollm2_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []
    made = smollm2.ensure(said.append)
    assert "converting" in said[0]
    assert smollm2.ensure(said.append) == made
    assert len(said) == 2
    ready = load()
    ids = ready.tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in ready.tokenizer.decode(ready.model.generate(ids, max_new_tokens=4, do_sample=False)[0])
