"""
The models by name: `model = '...'` in a config. A new model is two lines here (its import, its name) and one file: a
dataclass that inherits from model_baseline.GPTConfig with its keys, and a class that inherits from model_baseline.GPT (or
another model's).
"""
import configurator
import model
import model_baseline
import model_controls
import model_mhc
import model_mhc_mixed
import model_stereographic
import model_tau
import model_terms
from common.errors import UserError

MODELS = {  # name -> (config dataclass, module class)
    "baseline": (model_baseline.BaselineConfig, model_baseline.GPT),
    "mixed": (model.MixedConfig, model.GPT),
    "controls": (model_controls.ControlsConfig, model_controls.GPT),
    "mhc": (model_mhc.MHCConfig, model_mhc.GPT),
    "mhc_mixed": (model_mhc_mixed.MixedMHCConfig, model_mhc_mixed.GPT),
    "tau": (model_tau.TauConfig, model_tau.GPT),
    "stereographic": (model_stereographic.StereographicConfig, model_stereographic.GPT),
    "terms": (model_terms.TermsConfig, model_terms.GPT),
}
CONFIGS = {name: config for name, (config, _) in MODELS.items()}
ADDED_SINCE = {"row_scalars": "auto", "value_residual": "none", "kv_bins": 0, "position": "learned",
               "qk_norm": False, "activation": "gelu"}  # keys that earlier versions lack -> what those did

CURVED_SINCE = {"curvature_warmup": 0, "curvature_heads": None, "curvature_unit": "row", "curvature_form": "plain", "max_distance": None,
                "max_update": None, "update_scale": "none", "project_gradient": "exact", "embedding_gradient": "euclidean"}


def added_since(name):
    """ADDED_SINCE of the model of that name."""
    own = {"mhc": {"ops": "torch"}, "tau": {"ops": "torch", "laplacian_heads": 0},
           "baseline": {"head_gate": "none", "bounded_rows": False, "longest_row": model_baseline.LONGEST_ROW, "longest_update": 0.5},
           "terms": {"ball": True, "max_distance": None, "likeness": 0.0}, "mixed": CURVED_SINCE, "mhc_mixed": CURVED_SINCE,
           "stereographic": {"max_update": None}}
    return {**ADDED_SINCE, **own.get(name, {})}


def build(name, config, device_type=None):
    """A freshly initialised model. config: the dataclass instance of that name. device_type: where it is to run, if known."""
    if getattr(config, "ops", "torch") == "torch":
        return MODELS[name][1](config)
    try:
        import kernels
        import model_triton
    except ImportError as e:
        raise UserError(f"ops = 'triton' needs Triton ({e}): install the one that your torch needs (requirements.txt), or use "
                        "--ops=torch") from None
    problem = kernels.check_device(device_type) if device_type else None
    if device_type == "cuda" and not problem and not kernels.INTERPRETED:
        problem = kernels.check_launcher()
    if problem:
        raise UserError(problem)
    return model_triton.GPTS[name](config)


def config_from_dict(name, values):
    """The config dataclass of a model from a dict that may hold other keys too (a run's config.json)."""
    if not isinstance(name, str) or name not in MODELS:
        raise UserError(f"unknown model {name!r}; there are {', '.join(MODELS)}")
    schema, values = CONFIGS[name], {**added_since(name), **values}
    missing = [k for k in schema.__dataclass_fields__ if k not in values]
    if missing:
        raise UserError(f"the configuration of this {name} model lacks {missing[0]!r}")
    return schema(**{k: configurator.checked(k, values[k], field, "config.json")
                     for k, field in schema.__dataclass_fields__.items()})
