"""In BPE, at good rates: does curvature help beyond the plain GPT? With AdamW, and with Muon, RoPE and QK norm.

    python data/packages/prepare.py --corpus=documentation --tokens=bpe

By characters it does (verdict.py, verdict_modern.py). In BPE it was behind at low rates, with one seed (rates_bpe.py). The model, text and
budget are those of rates_bpe.py, the seeds are new. AdamW's rate is 1.2e-2, where each arm of rates_bpe.py has its best of seven; what
that study did not have is at the plain GPT's. Muon's is 0.02, the plain GPT's best by characters (verdict_muon_rates.py), AdamW's for
the rest 6e-3, as in verdict_modern.py: nothing is chosen here.

c1-origin does not look at the previous token, so the plain GPT is its flat twin; bounded has rows and updates of a largest length,
without curvature; likeness is the plain GPT of component.py. Asked is what verdict_modern.py asks, in BPE; the arms with AdamW are for
what rates_bpe.py left open. Written before any of its runs; but bounded with AdamW came in after all the others had ended.

9 arms with 3 seeds: 27 runs of 3 to 4 minutes of one thread.
"""
from sweeps import component as _component
from sweeps import rates_bpe as _rates
from sweeps import verdict_modern as _modern
from sweeps import verdict_origin as _origin

defaults, budget = _rates.defaults, _rates.budget  # 0.2M parameters, 1,500 steps of 4,096 tokens
seeds = [3003, 3004, 3005]

_muon = dict(position='rope', qk_norm=True)
arms = {
    **{f'{name}-muon': dict({key: value for key, value in _modern.arms[name].items() if key != 'seeds'}, **_muon)
       for name in ('baseline', 'c1-origin', 'bounded')},
    **{name: dict(arm, learning_rate=1.2e-2, role='other') for name, arm in _rates.arms.items()},
    'likeness': dict(_component.arms['likeness'], learning_rate=1.2e-2, role='other'),
    'bounded': dict(config='config/demo_bounded.py', learning_rate=1.2e-2, role='other'),
    'c1-origin': dict(_origin.arms['c1-origin'], learning_rate=1.2e-2, role='other'),
}
question = dict(hypothesis='in BPE with Muon, RoPE and QK norm curvature per head is worth more than 0.004 nats a token over the plain GPT',
                arm='c1-origin-muon', against='baseline-muon', margin=0.004, stop='fixed', spread=0.009)
