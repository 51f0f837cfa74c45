"""
The first NaN or Inf of a run stops it before the weights are touched.

Where reading a number costs nothing (a CPU) every step's loss and gradient norm are looked at. A GPU would stand still for that: there
the device itself notes the first bad step and from then on skips the optimizers' updates, and the host reads the note on the
steps that it logs, evaluates or saves. The weights are then still those of before the bad step, which can be repeated to find
what is wrong. float16 (whose scaler decides on the host) and Muon (which cannot be told to skip) are looked at every step.
"""
import math

import torch


class Guard:
    def __init__(self, optimizers, scaler, device, alone):
        """alone: of several processes the gradient norm decides, which is the same on all."""
        self.scaler, self.alone = scaler, alone
        self.waits = self.must_wait(torch.device(device).type, optimizers)
        self.bad = torch.zeros((), device=device)  # 1 from the first bad step on
        self.first = torch.full((), -1, dtype=torch.int64, device=device)  # that step
        if not self.waits:
            for optimizer in optimizers:
                optimizer.found_inf = self.bad  # the fused AdamW skips its update where this is 1; GradScaler uses it so, too

    def must_wait(self, device_type, optimizers):
        return device_type != "cuda" or self.scaler.is_enabled() or not all(isinstance(o, torch.optim.AdamW) for o in optimizers)

    def usable(self, step, loss, norm):
        """Is this step to be made? loss, norm: tensors of shape () on the device. Always, as far as the host can tell, where it does
        not wait for the device; then the device skips it itself."""
        if self.waits:
            return math.isfinite(norm.item())
        good = torch.isfinite(norm) & torch.isfinite(loss) if self.alone else torch.isfinite(norm)
        self.first.copy_(torch.where(good | (self.bad > 0), self.first, step))
        self.bad.copy_(torch.where(good, self.bad, 1.0))
        return True

    def bad_step(self, step, loss, usable):
        """The first bad step, or None. Waits for the device. loss: a number, that of step `step` over all processes."""
        if not self.waits:
            first = self.first.item()
            return first if first >= 0 else None
        # float16 expects an Inf gradient now and then: the step is skipped, and the scaler lowers its scale
        too_often = self.scaler.get_scale() < 2.0 ** -14 if self.scaler.is_enabled() else not usable
        return step if too_often or not math.isfinite(loss) else None
