# SPDX-License-Identifier: Apache-2.0
"""What an update tells about single samples, and a warning where a configuration lets it.

Behind a softmax a step of the last layer is a sum of (p - onehot(y)) x: from one sample the ratio of a row's weights to its bias
is the sample's features, and the sign of the bias is its label, exactly. From few samples it is nearly so; from sixteen and more
it is the mean of a class. Further steps and epochs blur it, and noise hides it.
"""

from __future__ import annotations

from fedmote.config import StrategyConfig

# Fewer samples behind an update can be told from each other.
SAFE_EXAMPLES = 16


def leakage_warning(config: StrategyConfig) -> str | None:
    """One sentence that names the keys, where an update may give single samples away; None where it cannot."""
    if config.preset != "centaur" or config.min_examples >= SAFE_EXAMPLES or config.privacy is not None:
        return None
    few = max(1, config.min_examples)
    keys = f"strategy: min_examples = {config.min_examples}"
    effect = "its labels, and nearly its features, can be read out of the update"
    if few <= config.batch and config.epochs <= 1:
        keys += f" with epochs = {config.epochs}, batch = {config.batch} and learning_rate = {config.learning_rate:g}"
        effect = "the update is one step, and divided by the learning rate it is the samples' features and labels themselves"
    elif config.batch == 1:
        keys += f" with batch = 1 and epochs = {config.epochs}"
        effect = "every step is that of one sample, and the first ones can be read out of the update"
    plural = "a single sample" if few == 1 else f"as few as {few} samples"
    return f"{keys} lets a device report what it learned from {plural}: {effect}; set min_examples to {SAFE_EXAMPLES} or more"
