"""Group-relative algorithms by name: `algorithm: dapo` in a GRPO recipe sets what its paper does.

A preset fills the keys that neither the recipe nor the command line sets, so that the resolved recipe shows them all.
It states the objective: loss, ratio, clipping, KL, advantage, shaping. Scale (learning rate, batch, group, lengths)
stays with the recipe; recipes/grpo/README.md lists the papers' own.

| algorithm | paper | what is its own |
|---|---|---|
| r1 | DeepSeek-R1, arXiv:2501.12948v2: equations 1-3, training details in its supplement | wide clip, KL to a reference that is renewed every 400 steps |
| dr_grpo | arXiv:2503.20783, section 3.2 and the settings of its repository | no division by length or by spread |
| dapo | arXiv:2503.14476, equations 8-13, section 4.1 | higher upper clip, mean over tokens, soft overlong punishment, dynamic sampling |
| gspo | arXiv:2507.18071v2, equations 5-7, section 5.1 | one ratio a sequence, a narrow clip |
| cispo | MiniMax-M1, arXiv:2506.13585, equations 4-5; the bound from ScaleRL, arXiv:2510.13786 | clips the weight, never the gradient |

Where papers and TRL say things differently:
- r1: equation 1 writes whole outputs; the loss is DeepSeekMath's (arXiv:2402.03300, equation 3) that it names: a mean
  over the tokens of each completion. Its KL is not multiplied by the ratio (`use_bias_correction_kl`).
- dapo: no overlong filtering (`mask_truncated_completions`): the authors' recipe in verl leaves it out in favour of
  the soft punishment. That punishment (0 to -1) stands beside answers worth -1 and 1; where they are worth 0 and 1,
  the same proportion is a weight of 0.5.
- cispo: TRL's `epsilon_high` is the bound of the ratio itself, not of its excess over 1.
"""  # noqa: E501

import difflib

from r1llama.training.recipe import RecipeError

PRESETS: dict[str, dict] = {
    "r1": {
        "loss_type": "grpo",  # mean over each completion's tokens, then over completions
        "scale_rewards": "group",  # equation 3
        "importance_sampling_level": "token",
        "epsilon": 10.0,  # "GRPO clip ratio"
        "epsilon_high": None,  # as below
        "beta": 0.001,
        "use_bias_correction_kl": False,  # equation 2
        "sync_ref_model": True,
        "ref_model_sync_steps": 400,
        "ref_model_mixup_alpha": 1.0,  # replaced, not mixed
        "num_iterations": 1,  # "a single inner epoch"
        "temperature": 1.0,
    },
    "dr_grpo": {
        "loss_type": "dr_grpo",  # a sum over tokens, divided by the constant max_completion_length
        "scale_rewards": "none",
        "importance_sampling_level": "token",
        "epsilon": 0.2,
        "epsilon_high": None,
        "beta": 0.0,
        "num_iterations": 1,
        "temperature": 1.0,
    },
    "dapo": {
        "loss_type": "dapo",  # mean over all tokens of the batch, equation 12
        "scale_rewards": "group",  # equation 9
        "importance_sampling_level": "token",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,  # section 2.3
        "num_iterations": 1,
        "temperature": 1.0,
        "mask_truncated_completions": False,
        "soft_punish_cache": 0.2,  # 4,096 of 20,480 tokens
        "max_resamples": 9,  # verl: at most 10 generations
    },
    "gspo": {
        "loss_type": "grpo",  # the ratio is the same for all tokens of a completion
        "scale_rewards": "group",  # equation 6
        "importance_sampling_level": "sequence",  # equation 7
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
        "beta": 0.0,
        "num_iterations": 1,
        "temperature": 1.0,
    },
    "cispo": {
        "loss_type": "cispo",
        "scale_rewards": "group",
        "importance_sampling_level": "token",
        "epsilon_high": 5.0,  # MiniMax-M1 names none
        "beta": 0.0,
        "num_iterations": 1,
        "temperature": 1.0,
    },
}


def preset(values: dict) -> dict:
    """The values that a recipe's `algorithm` stands for; none without.

    Raises:
        RecipeError: There is no such algorithm.
    """
    name = values["algorithm"]
    if not name:
        return {}
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name).lower(), PRESETS, n=1, cutoff=0.3)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise RecipeError(f"`algorithm: {name}` is none of {', '.join(PRESETS)}.{hint}")
    # With adapters the reference is the model without them, which nothing renews.
    return {key: value for key, value in PRESETS[name].items() if not (values["use_peft"] and "ref_model" in key)}
