"""Three broken runs and their healthy twins, to see what an alert looks like. docs/alerts.md explains what they print.

    python examples/alerts.py nan                # SFT: a weight becomes NaN after step 10
    python examples/alerts.py constant_reward    # GRPO: the reward function gives all completions one score
    python examples/alerts.py identical_pairs    # DPO: chosen and rejected are the same text
    python examples/alerts.py nan --healthy      # the twin: all the same but for the fault

Each takes well under a minute. Nothing is downloaded, and a CPU is enough.
"""

import argparse
import logging
import random
from pathlib import Path

import torch
from datasets import Dataset
from tiny_lm import HAPPY, build_tiny_lm, make_opening, make_rest, make_stories, set_up_process
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from rldk.integrations.trl import RLDKCallback

STEPS = 30
# What a machine without a GPU needs, and what keeps the trainer's own lines out of the way.
COMMON = {
    "max_steps": STEPS,
    "logging_steps": 1,  # rldk records every step; its own lines come every `log_interval` steps
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "seed": 0,
}


class BreakWeight(TrainerCallback):
    """Makes one weight NaN after step 10, as an overflow in half precision does."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Breaks it once."""
        if state.global_step == 10:
            with torch.no_grad():
                next(model.parameters())[5, 0] = float("nan")


def nan(model_path, folder, run_name, healthy):
    """SFT on made-up stories."""
    return SFTTrainer(
        model=model_path,
        args=SFTConfig(
            output_dir=folder, run_name=run_name, per_device_train_batch_size=16, learning_rate=1e-3, **COMMON
        ),
        train_dataset=Dataset.from_dict({"text": make_stories(1000, seed=1)}),
        callbacks=[] if healthy else [BreakWeight()],
    )


def count_happy(text):
    """Returns the number of happy words in `text`."""
    return float(sum(word in HAPPY for word in text.replace(".", " ").split()))


def each_its_own(completions, **kwargs):
    """The reward as it should be: each completion's happy words."""
    return [count_happy(completion) for completion in completions]


def all_alike(completions, **kwargs):
    """The reward with a slip: `completions[0]` where it should be `completion`."""
    return [count_happy(completions[0]) for completion in completions]


def constant_reward(model_path, folder, run_name, healthy):
    """GRPO towards happy words."""
    rng = random.Random(0)
    return GRPOTrainer(
        model=model_path,
        reward_funcs=each_its_own if healthy else all_alike,
        args=GRPOConfig(
            output_dir=folder, run_name=run_name, per_device_train_batch_size=32, num_generations=8,
            max_completion_length=40, learning_rate=4e-4, **COMMON,
        ),
        train_dataset=Dataset.from_dict({"prompt": [make_opening(rng) for _ in range(500)]}),
    )


def identical_pairs(model_path, folder, run_name, healthy):
    """DPO on pairs of a happy and a sad end."""
    rng = random.Random(0)
    rows = []
    for _ in range(500):
        opening = make_opening(rng)
        chosen = " " + make_rest(opening, rng, happy_fraction=0.7)
        rejected = " " + make_rest(opening, rng, happy_fraction=0.2)
        rows.append({"prompt": opening, "chosen": chosen, "rejected": rejected if healthy else chosen})
    return DPOTrainer(
        model=model_path,
        args=DPOConfig(
            output_dir=folder, run_name=run_name, per_device_train_batch_size=16, learning_rate=1.5e-4, beta=0.3, **COMMON
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_path),
    )


RUNS = {"nan": nan, "constant_reward": constant_reward, "identical_pairs": identical_pairs}


def parse_args():
    """Reads the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("fault", choices=RUNS, help="what is wrong with the run")
    parser.add_argument("--healthy", action="store_true", help="the same run without it")
    parser.add_argument("--output-dir", type=Path, default=Path("./rldk_logs/alerts"), help="where the files go")
    return parser.parse_args()


def main():
    """Trains one of the six and says what rldk saw."""
    args = parse_args()
    set_up_process()
    logging.basicConfig(level=logging.INFO)

    run_name = f"{args.fault}_healthy" if args.healthy else args.fault
    model_path = build_tiny_lm(args.output_dir / "tiny_lm", pretrain_steps=150)
    trainer = RUNS[args.fault](model_path, str(args.output_dir / "trainer"), run_name, args.healthy)
    recorder = RLDKCallback(output_dir=args.output_dir)
    trainer.add_callback(recorder)
    trainer.remove_callback(PrinterCallback)  # it prints every row of metrics when there is no progress bar
    trainer.train()

    print(f"\n{recorder.summary_text()}")


if __name__ == "__main__":
    main()
