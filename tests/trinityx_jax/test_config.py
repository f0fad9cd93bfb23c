"""Configuration: round trip, overrides, and one line for every mistake."""

import pytest

from trinityx_jax.config import Config, dump, load, preset, to_dict
from trinityx_jax.errors import UsageError


def test_yaml_round_trip(tmp_path):
    path = tmp_path / "c.yaml"
    config = load(None, ["experts.steps=7", "mocae.gamma=output", "arbitrage.alphas=[0.1, 0.25]"])
    path.write_text(dump(config))
    assert load(path) == config
    assert config.arbitrage.alphas == ("0.1", "0.25")


def test_empty_file_and_no_file_are_the_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("")
    assert load(tmp_path / "c.yaml") == load(None) == Config()


def test_numbers_in_scientific_notation_are_numbers():
    assert load(None, ["router.learning_rate=1e-3"]).router.learning_rate == 1e-3


@pytest.mark.parametrize("name", ["quickstart", "real_data"])
def test_presets_name_every_key_they_set(name):
    assert to_dict(load(preset(name)))["data"]["source"] in ("microworld", "hhh")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("expert.steps=7", "unknown config key 'expert'; did you mean 'experts'?"),
        ("experts.step=7", "unknown config key 'experts.step'; did you mean 'experts.steps'?"),
        ("experts.steps=many", "config experts.steps='many': expected int"),
        ("experts.steps=true", "config experts.steps=True: expected int"),
        ("experts.steps=0", "config experts.steps=0: must be positive"),
        ("experts=3", "config section 'experts' must be a mapping of keys"),
        ("seed", "--set 'seed': write section.key=value"),
        ("seed.deep=1", "config seed={'deep': 1}: expected int"),
        ("data.source=web", "config data.source='web': allowed are ['microworld', 'hhh', 'files']"),
        ("data.template=hello", "must hold {prompt} once"),
        ("backbone_revision=main", "backbone_revision is for a Hugging Face backbone"),
        ("model.num_key_value_heads=3", "must divide model.num_attention_heads=4"),
        ("model.head_dim=7", "rotary embedding needs an even size"),
        ("data.source=files", "name the folder of the files in data.data_dir"),
        ("mocae.objectives=[]", "one or more, each once"),
        ("mocae.objectives=[honest, honest]", "one or more, each once"),
        ("mocae.objectives=[a b]", "'a b' must be letters, digits"),
        ("mocae.objectives=[negated-x]", "not begin with 'negated-'"),
        ("mocae.objectives=[guardian]", "and be none of mixture, top1"),
        ("mocae.objectives=[kind]", "no rows for 'kind', only for helpful, harmless, honest; use"),
        ("experts.mix=[1, 2]", "one positive weight for each of ['helpful', 'harmless', 'honest']"),
        ("router.mix=[1, 2, 0]", "config router.mix=[1.0, 2.0, 0.0]: one positive weight"),
        ("pretrain.mix=[1]", "the corpus has no objectives to mix"),
        ("experts={loss: dpo, beta: 0}", "experts.beta=0: it takes low_rank experts"),
        ("mocae.top_k=4", "from 1 to 3 experts, or 0 for all"),
        ("arbitrage.alphas=[0.1, 1.5]", "'1.5' must be a number inside (0, bound=1)"),
        ("arbitrage.alphas=[some]", "'some' must be a number inside (0, bound=1)"),
        ("mesh.fsdp=-1", "at most one is -1"),
        ("seed=[1", "--set 'seed=[1': not YAML"),
    ],
)
def test_mistakes_are_one_line(override, message):
    with pytest.raises(UsageError) as error:
        load(None, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml: No such file"):
        load(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\nb: }")
    with pytest.raises(UsageError, match=r"bad.yaml: not YAML") as error:
        load(tmp_path / "bad.yaml")
    assert "\n" not in str(error.value)
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UsageError, match="must be a mapping"):
        load(tmp_path / "list.yaml")


def test_objectives_are_free_where_the_rows_come_from_files():
    names = "mocae.objectives=[kind, v1.0-brief, third, helpful]"
    config = load(None, ["data.source=files", "data.data_dir=rows", names, "mocae.top_k=4"])
    assert config.mocae.objectives == ("kind", "v1.0-brief", "third", "helpful")
    two = load(None, ["mocae.objectives=[honest, helpful]", "experts.mix=[1, 3]"])
    assert two.experts.mix == (1.0, 3.0)
    with pytest.raises(UsageError, match="from 1 to 2 experts"):
        load(None, ["mocae.objectives=[honest, helpful]", "mocae.top_k=3"])
