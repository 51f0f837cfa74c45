"""The seconds that training took, without evaluations, saving and compiling, and what follows from them: speed, time left."""
import datetime
import sys
import time

from tqdm import tqdm

REPORT_SECONDS = 60  # without a terminal: between two lines of progress, beside those of evaluations


class Clock:
    """Runs from start() to read(), which is called when the device has done what it was given. seconds: of all such spans but
    those that do not count: a first step that is compiled is the compiler's time."""

    def __init__(self, limit):
        self.seconds, self.limit = 0.0, limit  # limit: config.max_seconds
        self._began, self._steps = None, 0  # of the span that runs
        self._waited = 0.0
        self._logged = dict(seconds=0.0, steps=0, waited=0.0)  # since the last logged step

    def start(self):
        """A step begins; the span that runs goes on, if there is one."""
        if self._began is None:
            self._began, self._steps, self._waited = time.perf_counter(), 0, 0.0
        self._steps += 1

    def waited(self, since):
        """For data, since that moment."""
        self._waited += time.perf_counter() - since

    def is_late(self):
        """Is the limit reached with the span that runs?"""
        return self.limit is not None and self.seconds + (time.perf_counter() - self._began) >= self.limit

    def is_over(self):
        return self.limit is not None and self.seconds >= self.limit

    def read(self, counts=True):
        """The span ends. -> seconds a step in it."""
        took = time.perf_counter() - self._began
        self.seconds += took if counts else 0.0
        for key, amount in (("seconds", took), ("steps", self._steps), ("waited", self._waited)):
            self._logged[key] += amount
        self._began = None
        return took / self._steps

    def speed(self, tokens_per_step):
        """(tokens a second, share of the time that was spent waiting for data) since this was last asked."""
        since, self._logged = self._logged, dict(seconds=0.0, steps=0, waited=0.0)
        return since["steps"] * tokens_per_step / since["seconds"], since["waited"] / since["seconds"]


class Console:
    """What a run says of itself: a bar on a terminal, and lines."""

    def __init__(self, clock, start, max_iters, speaks):
        self.clock, self.start, self.max_iters, self.speaks = clock, start, max_iters, speaks
        self.bar = tqdm(total=max_iters, initial=start, disable=None if speaks else True, unit="step", dynamic_ncols=True)
        self.smooth = None
        self._began = self._spoke = time.perf_counter()

    def line(self, step, what):
        """Where the run is, and how long it may take."""
        self._spoke = time.perf_counter()
        left = (self._spoke - self._began) / (step - self.start) * (self.max_iters - step) if step > self.start else 0
        if self.clock.limit is not None:
            left = min(left, self.clock.limit - self.clock.seconds)
        if self.speaks:
            self.bar.write(f"step {step}: {what}, {self.clock.seconds:,.1f} s of training"
                           + (f", about {datetime.timedelta(seconds=round(left))} left" if left >= 1 else ""))
            sys.stdout.flush()

    def logged(self, step, loss, dt, tok_per_s):
        """After step `step`, which was logged."""
        self.smooth = loss if self.smooth is None else 0.9 * self.smooth + 0.1 * loss
        self.bar.set_postfix_str(f"loss {self.smooth:.4f}, {tok_per_s:,.0f} tok/s", refresh=False)
        if self.bar.disable and time.perf_counter() - self._spoke > REPORT_SECONDS:
            self.line(step + 1, f"last batch {loss:.4f}, {dt * 1000:.0f} ms a step, {tok_per_s:,.0f} tokens/s")

    def stepped(self):
        self.bar.update(1)

    def close(self):
        self.bar.close()
