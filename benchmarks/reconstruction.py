"""Table II of the paper rebuilt: `wdmoe simulate` at its defaults, held against the paper's 32 cells.

    python benchmarks/reconstruction.py

One profile and one batch size for all eight benchmarks. The last line is JSON: deviations of the savings from the
paper's in percentage points (of their mean over the benchmarks, and of the worst benchmark), the worst factor of the
first row, the seconds, and how many values were fitted to how many cells, how many others chosen by their order.
"""

import json
import subprocess
import sys
import time

SAVING_ROWS = ("allocation_only", "selection_only", "both")


def main():
    started = time.perf_counter()
    command = [sys.executable, "-m", "wdmoe_opencompass.cli", "simulate", "--json"]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    seconds = time.perf_counter() - started
    cells = answer["cells"]
    heads = f"{'row':16} {'benchmark':10} {'ours ms':>10} {'paper ms':>10} {'factor':>7}"
    print(f"{heads} {'saving':>7} {'paper':>6} {'points':>7}")
    for cell in cells:
        line = f"{cell['row']:16} {cell['benchmark']:10} {cell['ours_ms']:10.1f} {cell['paper_ms']:10.1f}"
        line += f" {cell['ours_ms'] / cell['paper_ms']:7.2f}"
        if "saving_percent" in cell:
            line += f" {cell['saving_percent']:7.1f} {cell['paper_saving_percent']:6.1f}"
            line += f" {cell['difference_points']:+7.1f}"
        print(line)
    counts = dict(fitted_values=len(answer["fitted_to_table_2"]), chosen_values=len(answer["chosen_by_order"]))
    print(json.dumps(figures(cells, answer["mean_savings"]) | counts | dict(seconds=round(seconds, 1))))


def figures(cells, mean_savings):
    """-> what the last line says of the cells."""
    found = {}
    for row in SAVING_ROWS:
        found[f"{row}_mean_points"] = round(abs(mean_savings[row]["difference_points"]), 2)
    for row in SAVING_ROWS:
        worst = max(abs(cell["difference_points"]) for cell in cells if cell["row"] == row)
        found[f"{row}_worst_points"] = round(worst, 2)
    factors = [cell["ours_ms"] / cell["paper_ms"] for cell in cells if cell["row"] == "vanilla_even"]
    found["row_1_worst_factor"] = round(max(max(factor, 1 / factor) for factor in factors), 3)
    return found | dict(cells=len(cells))


if __name__ == "__main__":
    main()
