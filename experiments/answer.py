"""
The answer to a sweep's question (question.py), and what would change it.
"""
import dataclasses
import math
import os
from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from common.intervals import mean_interval
from experiments import sequential
from experiments.question import read_told
from experiments.results import NothingEnded, read_plan, read_sweep
from experiments.statistics import (
    LEAST_TO_PLAN,
    Difference,
    choose_lr,
    equivalence_test,
    measuring_pair,
    most_often,
    paired_difference,
    pairs_needed,
    power_of_difference,
    power_of_equivalence,
    selection_seed_of,
)


@dataclass(frozen=True)
class Answer:
    verdict: str  # of sequential.verdict
    difference: Difference
    low: float | None  # of the interval that decides
    high: float | None
    p_equivalent: float | None  # TOST, with stop = 'fixed'
    diverged: str = ""  # the arm that has no rate, for it diverged with a seed; then the difference is over the pairs that finished
    impossible: bool = False  # that is so at all of its rates: no more runs will give an answer
    optimistic: bool = False  # rates were chosen on the seeds that measure

    @property
    def decided(self):
        return self.verdict in sequential.DECIDED


def answer(question, arms, selection_seed):
    """Of {name: Arm}; None where the two have no pair of seeds that measures."""
    pair = [arms[name] for name in (question.arm, question.against) if name in arms]
    choices = [choose_lr(arm.losses(), selection_seed) for arm in pair]
    for arm, choice in zip(pair, choices):
        if choice is None and arm.losses():
            return without_a_rate(arm, pair)
    if len(pair) < 2 or None in choices:
        return None
    difference = paired_difference(*measuring_pair(*choices))
    if not difference.differences:
        return None
    optimistic = any(choice.selection_seed is None and len(arm.grid()) > 1 for arm, choice in zip(pair, choices))
    return dataclasses.replace(judged(question, difference), optimistic=optimistic)


def without_a_rate(arm, pair):
    """The Answer where an arm diverged with a seed at each rate that was run: none. Its difference is over the pairs that finished, where
    each arm has one rate; else nothing says which rates to compare."""
    diverged = {lr for lr, seeds in arm.losses().items() if any(map(math.isinf, seeds.values()))}
    one_rate = len(pair) == 2 and all(len(each.grid()) == 1 and each.losses() for each in pair)
    losses = [next(iter(each.losses().values())) for each in pair] if one_rate else [{}, {}]
    return Answer("none", paired_difference(*losses, sign_flips=False), None, None, None, diverged=arm.name,
                  impossible=diverged >= set(arm.grid()))


def judged(question, difference):
    """The Answer that these differences are."""
    d = difference.differences
    if question.stop == "anytime":
        low, high = (float(side[-1]) for side in sequential.confidence_sequence(d, question.alpha))
        return Answer(sequential.verdict(low, high, question.margin), difference, low, high, None)
    interval = mean_interval(d, 1 - question.alpha)
    verdict, p = sequential.verdict(interval.low, interval.high, question.margin), equivalence_test(d, question.margin)
    if verdict not in sequential.DECIDED and p is not None and p < question.alpha:
        verdict = "equivalent"
    return Answer(verdict, difference, interval.low, interval.high, p)


SAID = {"lower": "yes: {arm} is lower than {against} by more than {margin:g}",
        "higher": "no: {arm} is higher than {against} by more than {margin:g}",
        "equivalent": "no: {arm} and {against} differ by less than {margin:g}",
        "lower, not known by how much": "{arm} is lower than {against}; whether by more than {margin:g} is open",
        "higher, not known by how much": "no: {arm} is higher than {against}; whether by more than {margin:g} is open",
        "open": "open: {arm} and {against} are not told apart, and not shown to differ by less than {margin:g}"}


def in_words(question, found, unit, planned, ended=False):
    """Sentences: the answer, how it was obtained, what would change it. found: an Answer or None; planned: pairs of seeds; ended: all
    planned runs of the two arms have ended, so that a pair that is lacking stays so."""
    text = f"Question: {question.hypothesis.rstrip('.')}. "
    if found is None:
        return text + ("Answer: none; the runs have ended, and no pair of seeds has a result (a run that crashed has none)."
                       if ended else "Answer: none yet; no pair of seeds has ended.")
    d = found.difference.differences
    if found.diverged:
        text += (f"Answer: none, for {found.diverged} diverged with a seed, and has no rate at which it can be compared"
                 f"{'' if found.impossible else ' so far'}.")
        return text + (f" Over the {len(d)} pairs that both finished, {question.arm} minus {question.against} = {float(np.mean(d)):+.4f}; "
                       "that is no answer, for it leaves out where one failed." if d else "")
    n, mean = len(d), float(np.mean(d))
    said = SAID[found.verdict].format(**dataclasses.asdict(question))
    kind = f"{'anytime-valid ' if question.stop == 'anytime' else ''}{100 * (1 - question.alpha):g}% interval"
    interval = (f"no {kind} yet" if found.low is None or math.isinf(found.low) else f"{kind} [{found.low:+.4f}, {found.high:+.4f}]")
    if question.stop == "anytime":
        how = f"{interval}, after {n} of at most {planned} pairs of seeds"
    else:
        p = found.difference.p
        how = (f"{interval}, {n} of {planned} pairs of seeds, t-test p = {'-' if p is None else f'{p:.2g}'}, equivalence "
               f"p = {'-' if found.p_equivalent is None else f'{found.p_equivalent:.2g}'}")
    # a look before the end is not in the plan of 'fixed': it is said to be one, and decides nothing
    early = question.stop == "fixed" and n < planned and not ended
    text += (f"{'Not the answer yet, for the sweep is to be looked at once, at its end' if early else 'Answer'}, {said} {unit}. "
             f"{question.arm} minus {question.against} = {mean:+.4f} ({how}).")
    if ended and n < planned and not (question.stop == "anytime" and found.decided):  # those that are not needed were not run
        text += f" {planned - n} of the planned pairs {'has' if planned - n == 1 else 'have'} no result."
    if found.optimistic:
        text += " Rates were chosen on the seeds that measure, which is optimistic for the arm that had more of them."
    return f"{text} {what_would_undo_it(question, found) if found.decided else what_would_change_it(question, d)}"


MORE = 100  # pairs


def what_would_undo_it(question, found):
    """After how many more pairs that say the opposite the answer would be open."""
    d = found.difference.differences
    other = math.copysign(2 * question.margin, np.mean(d)) if found.verdict == "equivalent" else 0.0
    opposite = f"that differ by {other:+.4f}" if other else "without a difference"
    for more in range(1, MORE + 1):
        if not judged(question, dataclasses.replace(found.difference, differences=(*d, *[other] * more))).decided:
            return f"{more} more {'pair' if more == 1 else 'pairs'} {opposite} would leave it open."
    return f"{MORE} more pairs {opposite} would not leave it open."


def what_would_change_it(question, differences):
    """How many pairs would say more, with the spread so far or, where that is of too few, the one that the question tells."""
    few = len(differences) < LEAST_TO_PLAN
    if not question.margin or (question.spread is None if few else np.ptp(differences) == 0):
        return "More seeds are needed to say how many would decide."
    spread, mean = question.spread if few else float(np.std(differences, ddof=1)), float(np.mean(differences))
    different, alike = (text for text, _ in pairs_for(question, spread))
    of = "the spread that was expected" if few else "this spread"
    text = (f"With {of} ({spread:.4f} a pair) {different} pairs show that a difference of {question.margin:g} is not 0, or one of "
            f"{2 * question.margin:g} more than {question.margin:g}, with a probability of 80%; {alike} show that there is none.")
    beyond = abs(mean) - question.margin
    if beyond <= 0 or few:
        return text
    n = pairs_in_words(question, beyond / spread, False)[0]
    return f"{text} If the difference is what it is now ({mean:+.4f}), {n} show that it is more than {question.margin:g}."


def pairs_for(question, spread):
    """How many pairs of seeds with this spread show that a difference of the margin is not 0, and that there is none beyond the margin,
    with a power of 80%: ((text, text without looks), ...). The two texts are the same for stop = 'fixed'."""
    return tuple(pairs_in_words(question, question.margin / spread, equivalence) for equivalence in (False, True))


def pairs_in_words(question, effect, equivalence):
    """One of the two of pairs_for(), for an effect in spreads: (text, text without looks)."""
    power = power_of_equivalence if equivalence else power_of_difference
    n = pairs_needed(lambda n: power(n, effect, question.alpha))
    fixed = "more than 100,000" if n is None else f"{n:,}"
    if question.stop == "fixed":
        return fixed, fixed
    n = sequential.pairs_needed_with_looks(effect, question.alpha, equivalence=equivalence)
    return f"more than {sequential.MOST_SIMULATED:,}" if n is None else f"some {n:,}", fixed


def planned_in_words(question, runs):
    """Before the first run: what the planned pairs of seeds can show, with the spread that the question tells. runs: of runs.py."""
    pairs = set.intersection(*({run.seed for run in runs if run.arm == name} for name in (question.arm, question.against)))
    rates = {}
    for run in runs:
        rates.setdefault(run.arm, set()).add(run.lr)
    if any(len(found) > 1 for found in rates.values()):  # one seed chooses, and does not measure: statistics.selection_seed_of
        seeds = [run.seed for run in runs]
        pairs -= {most_often(set(seeds), [], seeds)}
    (different, fixed_different), (alike, fixed_alike) = pairs_for(question, question.spread)
    looks = ("" if question.stop == "fixed" else
             f" Looks after every pair are in these numbers; one look at the end would need {fixed_different} and {fixed_alike}.")
    return (f"question: with a spread of {question.spread:g} a pair, {different} pairs show that a difference of {question.margin:g} is "
            f"not 0, or one of {2 * question.margin:g} more than {question.margin:g}, with a probability of 80%; {alike} show that there "
            f"is none; {len(pairs)} are planned.{looks}")


def has_plan(folder):
    """Is there a sweep.json that can be read?"""
    path = os.path.join(folder, "sweep.json")
    try:
        read_told(read_plan(path), path)
    except UserError:
        return False
    return True


def of_folder(folder, question, planned=True):
    """The Answer from what has ended in a sweep's folder, or None: by final losses, with the seed that the sweep's runs choose rates with.
    planned: of read_sweep()."""
    if not os.path.exists(os.path.join(folder, "sweep.json")):  # before the first start, also where rows were copied there
        return None
    try:
        summary = read_sweep(folder, "final", planned)
    except NothingEnded:
        return None
    return answer(question, {arm.name: arm for arm in summary.arms}, selection_seed_of(summary.arms, summary.seeds))
