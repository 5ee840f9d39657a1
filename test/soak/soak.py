# SPDX-License-Identifier: Apache-2.0
"""
Attack a live tracker for hours and say whether it stood: ``soak.py --hours 1 --out out/soak``.

The node runs as a process with the embedded model at a small resolution. Rounds of attacks (see
``attacks.py``) follow each other; each ends with a rest, after which memory, shared memory, file
descriptors, threads and the time of a step are noted. Exit code 0: passed.
"""

import argparse
import csv
import json
from pathlib import Path
import random
import sys
import time

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from attacks import attack, ATTACKS  # noqa: E402
import verdict  # noqa: E402
from world import World  # noqa: E402

REST = 8.0
"""Seconds at the end of each round."""


def soak(world: World, seconds: float, names: list[str]) -> None:
    """Attack in rounds until the time is up; at least one round."""
    chosen = [item for item in ATTACKS if not names or item.name in names]
    while world.tracker.process.poll() is None:
        for what in random.sample(chosen, len(chosen)):
            attack(world, what)
            print(
                f'{world.elapsed():6.0f} s  {what.name:16} faults {len(world.faults)}, '
                f'lost {len(world.judge.lost)}',
                flush=True,
            )
        world.rest(REST)
        world.count('rounds')
        if world.elapsed() > seconds:
            return
    world.fault('the tracker ended')


def report(world: World, out: Path) -> bool:
    """Write the curves and the verdict; return whether the soak was passed."""
    judge = world.judge
    passed, reasons, slopes = verdict.judge(
        world.samples, world.faults, judge.lost, verdict.tracebacks(out)
    )
    counts = {
        **world.counts,
        'minutes': round(world.elapsed() / 60, 1),
        'answers': judge.answers,
        'objects looked for': judge.judged,
        'objects found': judge.found,
        'mean overlap': round(sum(judge.overlaps) / max(len(judge.overlaps), 1), 3),
    }
    with open(out / 'samples.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, list(world.samples[0]))
        writer.writeheader()
        writer.writerows(world.samples)
    verdict.draw(out / 'curves.png', world.samples, slopes)
    (out / 'verdict.json').write_text(
        json.dumps({'passed': passed, 'reasons': reasons, 'counts': counts}, indent=2) + '\n'
    )
    print('\n'.join([*reasons, ', '.join(f'{v} {k}' for k, v in counts.items())]))
    print(f'{"passed" if passed else "FAILED"}; curves: {out / "curves.png"}')
    return passed


def main(arguments: list[str] | None = None) -> int:
    """Do it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--hours', type=float, default=1.0)
    parser.add_argument('--out', type=Path, default=Path('out/soak'))
    parser.add_argument('--rate', type=float, default=5.0, help='frames in a second')
    parser.add_argument(
        '--only', action='append', default=[], choices=[item.name for item in ATTACKS]
    )
    chosen = parser.parse_args(arguments)
    out = chosen.out / time.strftime('%Y%m%d-%H%M%S')
    world = World(out, chosen.rate)
    try:
        soak(world, 3600 * chosen.hours, chosen.only)
    except KeyboardInterrupt:
        print('interrupted: judged by what there is')
    finally:
        world.close()
    return 0 if report(world, out) else 1


if __name__ == '__main__':
    sys.exit(main())
