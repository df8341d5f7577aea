import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml

from src.bench.sizes import parse as parse_bench
from src.config.load import differing_keys, is_setting, load_config, resolved, whole, write_tree
from src.config.plan import load_plan
from src.config.schema import Config
from src.runtime.errors import InputError

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(path for path in CONFIGS.glob("*/*.yaml") if not path.name.startswith("comparison"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_configuration_loads(path):
    config = load_config(path)
    stem = path.stem if config.policy.kind == "captioner" else f"{path.parent.name}-{path.stem}"
    assert config.name == f"{config.data.dataset}-{stem}"
    if config.stage != "ce" and config.init_config is not None:
        assert load_config(path.parent / config.init_config).stage == "ce"


def test_base_holds_every_key():
    def keys(tree, prefix=""):
        for key, value in tree.items():
            yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]

    config = dataclasses.asdict(load_config(CONFIGS / "demo" / "ce.yaml"))
    assert set(keys(yaml.safe_load((CONFIGS / "base.yaml").read_text()))) == set(keys(config))


def test_base_explains_every_key():
    lines = (CONFIGS / "base.yaml").read_text().splitlines()
    assert [line for line in lines if re.match(r" *\w+: *[^ #]", line) and not re.search(r" # .*\w", line)] == []


def test_precedence_is_base_then_file_then_command_line(tmp_path):
    child = tmp_path / "mine.yaml"
    child.write_text(f"base: {CONFIGS / 'demo' / 'grpo.yaml'}\nkl:\n  coef: 0.5\nseed: 4\n")
    assert load_config(child).kl.coef == 0.5
    config = load_config(child, ["kl.coef=1e-3", "seed=4"])
    assert config.kl.coef == 1e-3 and config.name == "demo-mine"  # the configured seed has no suffix
    assert load_config(child, ["seed=3"]).name == "demo-mine-seed3"
    assert load_config(child, ["name=x", "seed=3"]).run_folder == Path("outputs/x")


@pytest.mark.parametrize(
    "override, words",
    [
        ("grpo.group=5", ["rl.group", "rl.group_size"]),
        ("sed=5", ["sed", "seed"]),
        ("data=5", ["'data'"]),
        ("seed=two", ["command line (seed=two)", "int"]),
        ("seed=true", ["seed=True", "int"]),
        ("seed", ["key=value"]),
        ("encoder.kind=clip", ["encoder.kind=clip", "resnet50, cnn"]),
        ("encoder.kind=vit", ["encoder.checkpoint", "folder of a vision tower"]),
        ("encoder.kind=resnet50", ["encoder.variant=cnn", "mindspore", "encoder.kind is resnet50"]),
        ("device=TPU", ["device=TPU", "Ascend"]),
        ("kl.coef=[", ["kl.coef"]),
        ("rl.group_size=1", ["rl.group_size=1", "at least 2"]),
        ("rl.update_images=7", ["rl.rollout_images", "rl.update_images=7"]),
        ("rl.sample_images=7", ["rl.rollout_images", "rl.sample_images=7"]),
        ("decoder.heads=5", ["decoder.heads=5", "decoder.width"]),
        ("decoder.positions=8", ["decoder.positions=8"]),
        ("advantage.baseline=leave_one_out", ["advantage.scale", "leave_one_out"]),
        ("tokenizer.kind=wordpiece tokenizer.vocab=null", ["tokenizer.vocab"]),
        ("name=../x", ["name=../x"]),
        ("ce.optimizer.lr=0", ["ce.optimizer.lr=0"]),
        ("decoder.dropout=1", ["decoder.dropout=1"]),
        ("rl.optimizer.beta2=1", ["rl.optimizer.beta2=1.0", "between 0 and 1"]),
        ("seed=4294967296", ["seed=4294967296", "2^32"]),
        ("decoder.embedding_dropout=1", ["decoder.embedding_dropout=1"]),
        ("caprl.max_tokens=0", ["caprl.max_tokens=0", "above 0"]),
        *[
            (f"caprl.base_url={url}", [f"caprl.base_url={url}", "http://127.0.0.1:8000/v1"])
            for url in (
                "127.0.0.1:8000/v1",
                "localhost/v1",
                "ftp://h/v1",
                "http://",
                "http://h:port/v1",
                "http://h:0/v1",
            )
        ],
        *[(f"caprl.base_url={url}", ["caprl.base_url="]) for url in ("http://[::1/v1", "http://h/v1?x=1", "''", "")],
        ("caprl.extra_body={top_k:1}", ["caprl.extra_body={top_k:1}", "JSON object in quotes", "'{\"top_k\": 1}'"]),
        ('caprl.extra_body=["top_k"]', ["caprl.extra_body=", "JSON object"]),
        ("caprl.extra_body=1", ["caprl.extra_body=1", "JSON object"]),
        ('caprl.extra_body={"top_p":NaN}', ["caprl.extra_body=", "JSON"]),
        ('caprl.extra_body={"model":"m"}', ["must not hold model, which caprl.model sets"]),
        ('caprl.extra_body={"messages":[]}', ["must not hold messages"]),
        ('caprl.extra_body={"max_tokens":9}', ["must not hold max_tokens, which caprl.max_tokens sets"]),
        ('caprl.extra_body={"max_completion_tokens":9}', ["caprl.max_tokens"]),
    ],
)
def test_bad_overrides_name_the_key(override, words):
    with pytest.raises(InputError) as error:
        load_config(CONFIGS / "demo" / "grpo.yaml", override.split())
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_section_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("data:")
    with pytest.raises(InputError, match="'data' must be a section of keys, not None"):
        load_config(tmp_path / "mine.yaml", ["data.root=x"])


def test_a_file_as_windows_writes_it_is_the_same(tmp_path):
    text = f"base: {Path('configs/demo/ce.yaml').resolve()}\r\nname: übung\r\n"
    (tmp_path / "ce.yaml").write_bytes(text.encode("utf-8-sig"))
    assert load_config(tmp_path / "ce.yaml").name == "übung"


def test_names_and_paths_are_taken_as_they_stand():
    """YAML would read a comment, 20240102, 7 and 100000.0."""
    words = ["data.root=/data/run #3", "name=2024_01_02", "data.lists=007", "encoder.checkpoint=1e5"]
    config = load_config(CONFIGS / "demo/grpo.yaml", words)
    found = (config.data.root, config.name, config.data.lists, config.encoder.checkpoint)
    assert found == ("/data/run #3", "2024_01_02", "007", "1e5")
    config = load_config(CONFIGS / "demo/grpo.yaml", ["data.lists='null'", "encoder.checkpoint=null", "caprl.model="])
    assert (config.data.lists, config.encoder.checkpoint, config.caprl.model) == ("null", None, None)


def test_what_an_older_version_wrote_is_filled_from_the_base(tmp_path):
    config = load_config(CONFIGS / "demo/grpo.yaml", ["rl.group_size=3"])
    tree = whole(config)
    del tree["stop_after_minutes"], tree["length"], tree["eval"]["beams"]
    write_tree(tree, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "text, words",
    [
        ("base: absent.yaml", ["absent.yaml"]),
        ("base: mine.yaml", ["mine.yaml", "itself"]),
        ("a: [", ["mine.yaml", "YAML"]),
        ("- 1", ["mine.yaml"]),
        ("seed: 1", ["missing", "base.yaml"]),
        ("base: BASE\ndata: 3", ["mine.yaml", "'data'"]),
        ("base: BASE\nseed: two", ["mine.yaml", "seed=two", "int"]),
        ("base: BASE\ngrpo:\n  passess: 3", ["rl.passess", "rl.passes"]),
        ("!!python/object/apply:os.system ['true']", ["mine.yaml"]),
    ],
)
def test_bad_files_name_the_file_or_key(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("BASE", str(CONFIGS / "base.yaml")))
    with pytest.raises(InputError) as error:
        load_config(path)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_what_a_request_may_be_given():
    text = '{"chat_template_kwargs": {"enable_thinking": false}, "top_k": 1}'
    urls = ("http://h", "https://user:pw@h.example:8443/v1/", "http://[::1]:8000/v1", "HTTP://127.1/v1")
    for url in urls:
        caprl = load_config(CONFIGS / "demo" / "grpo.yaml", [f"caprl.base_url={url}", f"caprl.extra_body={text}"]).caprl
        assert (caprl.base_url, caprl.extra_body) == (url, text)


def test_a_run_goes_on_with_another_bound_of_replies_but_not_with_other_replies():
    def changed(*overrides):
        common = ["rewards.caprl=1", "caprl.questions=q"]
        old, new = (resolved(load_config(CONFIGS / "demo" / "grpo.yaml", [*common, *more])) for more in ((), overrides))
        return differing_keys(old, new)

    assert changed("caprl.max_tokens=4096") == []
    assert changed('caprl.extra_body={"top_k": 1}') == ["caprl.extra_body"]


def test_a_resolved_file_has_only_what_its_stage_reads():
    ce = resolved(load_config(CONFIGS / "demo" / "ce.yaml", ["rl.group_size=9"]))
    assert "rl" not in ce and "ce" in ce
    assert not differing_keys(ce, resolved(load_config(CONFIGS / "demo" / "ce.yaml", ["output_root=/x", "device=CPU"])))
    other = resolved(load_config(CONFIGS / "demo" / "ce.yaml", ["ce.epochs=99", "seed=8", "name=demo-ce"]))
    assert differing_keys(ce, other) == ["ce.epochs", "seed"]
    assert not differing_keys(yaml.safe_load(yaml.safe_dump(ce)), ce)


def test_every_key_is_read_by_the_code():
    sources = "".join(path.read_text() for path in CONFIGS.parent.glob("src/**/*.py") if path.parent.name != "config")
    for derived in (Config.run_folder, Config.result_checkpoint, Config.cache_folder):
        sources += inspect.getsource(derived.fget)
    sources += (CONFIGS.parent / "train.py").read_text()

    def names(cls):
        for field in dataclasses.fields(cls):
            yield from names(field.type) if dataclasses.is_dataclass(field.type) else [field.name]

    assert [name for name in names(Config) if f".{name}" not in sources] == []


def test_the_former_name_of_a_section_is_read_everywhere(tmp_path):
    """Version 0.1 called the section rl grpo."""
    expected = load_config(CONFIGS / "demo/grpo.yaml", ["rl.group_size=7"])
    assert load_config(CONFIGS / "demo/grpo.yaml", ["grpo.group_size=7"]) == expected
    file = tmp_path / "grpo.yaml"
    text = f"base: {CONFIGS / 'demo/grpo.yaml'}\n"
    file.write_text(f"{text}grpo:\n  group_size: 7\n")
    assert load_config(file).rl == load_config(file, ["grpo.tokens=20"]).rl == expected.rl
    held = yaml.safe_load(yaml.safe_dump(resolved(expected)))
    held["grpo"] = held.pop("rl")
    assert differing_keys(held, resolved(expected)) == []
    held["grpo"]["group_size"] = 6
    assert differing_keys(held, resolved(expected)) == ["rl.group_size"]
    file.write_text(f"{text}grpo:\n  group_size: 7\nrl:\n  tokens: 9\n")
    with pytest.raises(InputError, match=r"grpo\.yaml: grpo\.\* and rl\.\* are both given: .* use rl\.\* only"):
        load_config(file)
    for words in (["grpo.group_size=7", "rl.tokens=9"], ["rl.group_size=7", "grpo.group_size=7"]):
        with pytest.raises(InputError, match=r"grpo\.\* and rl\.\* are both given: .* use rl\.\* only"):
            load_config(CONFIGS / "demo/grpo.yaml", words)
        with pytest.raises(InputError, match="both given"):
            load_plan(CONFIGS / "demo/comparison.yaml", words)
        with pytest.raises(InputError, match="both given"):
            parse_bench(words)
    with pytest.raises(InputError, match="cannot be set for a comparison"):
        load_plan(CONFIGS / "demo/comparison.yaml", ["grpo.rollouts=3"])
    assert load_plan(CONFIGS / "demo/comparison.yaml", ["grpo.group_size=7"]).overrides == ("rl.group_size=7",)
    assert parse_bench(["grpo.group_size=7"])[0].rl.group_size == 7
    assert is_setting("grpo.group_size=7")


def test_a_key_that_an_older_configuration_lacks_has_its_default():
    new = resolved(load_config(CONFIGS / "demo/grpo.yaml"))
    old = yaml.safe_load(yaml.safe_dump(new))
    del old["eval"]["block_trigrams"], old["deterministic"]
    assert differing_keys(old, new) == []
    assert differing_keys(old, resolved(load_config(CONFIGS / "demo/grpo.yaml", ["deterministic=true"]))) == [
        "deterministic"
    ]
