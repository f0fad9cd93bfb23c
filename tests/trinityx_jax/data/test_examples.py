from trinityx_jax.data.examples import Example


def test_features_round_trip_through_bytes():
    example = Example("id", "helpful", "sort", "sört 2 1", "1 2", ("1 2", "2 1"), 0, "2 1")
    features = {
        key: value.encode() if isinstance(value, str) else value
        for key, value in example.to_features().items()
    }
    features["options"] = [option.encode() for option in example.options]
    assert Example.from_features(features) == example


def test_rows_without_options_round_trip():
    example = Example("id", "pretrain", "fact", "fact", "so it is")
    features = example.to_features(options=False)
    assert not {"options", "label", "rejected"} & features.keys()
    assert Example.from_features(features) == example
