"""The models by name: `model = '...'` in a config. A new model is one line here and one file."""
import model
import model_baseline
from errors import UserError

MODELS = {  # name -> (config dataclass, module class)
    "baseline": (model_baseline.BaselineConfig, model_baseline.GPT),
    "mixed": (model.MixedConfig, model.GPT),
}
CONFIGS = {name: config for name, (config, _) in MODELS.items()}


def build(name, config):
    """A freshly initialised model. config: the dataclass instance of that name."""
    return MODELS[name][1](config)


def config_from_dict(name, values):
    """The config dataclass of a model from a dict that may hold other keys too (a run's config.json)."""
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; there are {', '.join(MODELS)}")
    schema = CONFIGS[name]
    missing = [k for k in schema.__dataclass_fields__ if k not in values]
    if missing:
        raise UserError(f"the configuration of this {name} model lacks {missing[0]!r}")
    return schema(**{k: values[k] for k in schema.__dataclass_fields__})
