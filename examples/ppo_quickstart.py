"""Trains a tiny language model with PPO and a reward function, on any TRL from 0.23 to the newest.

The model continues stories ("Anna walked to the park. ..."); the reward is the share of happy words among the
happy and sad ones it writes. It starts near 0.3 and rises to about 0.9. TRL removed its own PPO in 1.13.0 and never
took reward functions: `create_ppo_trainer` builds the trainer of rldk.ppo, whatever TRL is installed. Everything is
real and small enough for two CPU cores; nothing is downloaded.

    python examples/ppo_quickstart.py --output-dir ./ppo_quickstart_logs
"""

import argparse
import logging
import random
import time
from pathlib import Path

from datasets import Dataset
from tiny_lm import build_tiny_lm, happy_share, make_opening, set_up_process, write_stories
from transformers import PrinterCallback

from rldk.integrations.trl import PPOConfig, RLDKCallback, create_ppo_trainer


def happy_words(completions, **kwargs):
    """The reward function, as GRPO takes them: one number from 0.0 to 1.0 for each completion."""
    return [happy_share(completion) for completion in completions]


def parse_args():
    """Reads the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--output-dir", type=Path, default=Path("./ppo_quickstart_logs"), help="where the files go"
    )
    parser.add_argument("--updates", type=int, default=60, help="PPO updates of 64 stories (default: 60)")
    return parser.parse_args()


def main():
    """Builds the model, trains it and says what rldk saw."""
    args = parse_args()
    started = time.time()
    set_up_process()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rldk").setLevel(logging.INFO)

    print("1/3 Pre-training a tiny language model on made-up stories ...", flush=True)
    model_path = build_tiny_lm(args.output_dir / "tiny_lm")

    print(f"2/3 Training it with PPO for {args.updates} updates to write happy words ...", flush=True)
    rng = random.Random(0)
    prompts = Dataset.from_dict({"prompt": [make_opening(rng) for _ in range(1000)]})
    recorder = RLDKCallback(output_dir=args.output_dir, log_interval=10)
    config = PPOConfig(
        output_dir=str(args.output_dir / "trainer"),
        run_name="ppo_quickstart",  # names the run's files
        total_episodes=64 * args.updates,
        per_device_train_batch_size=64,
        num_ppo_epochs=4,  # optimizer steps on each batch of stories
        num_sample_generations=3,  # how often a few stories are logged
        response_length=48,  # the stories end by themselves after about 21 tokens
        stop_token="eos",
        temperature=1.0,
        learning_rate=1e-3,
        kl_coef=0.02,
        vf_coef=0.5,
        logging_steps=4,  # one log for each update
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,  # saves memory at the cost of time; there is plenty
        dataloader_pin_memory=False,  # pinning is for GPUs; on a CPU it only warns
        seed=0,
    )
    trainer = create_ppo_trainer(
        str(model_path), config, prompts, callbacks=[recorder], reward_funcs=happy_words
    )
    trainer.remove_callback(PrinterCallback)  # it prints every row of metrics when there is no progress bar
    trainer.train()

    print(f"3/3 Done in {time.time() - started:.0f} s. What the model writes now:")
    openings = [make_opening(rng) for _ in range(3)]
    stories = write_stories(trainer.model.policy, trainer.processing_class, openings)
    for opening, rest in zip(openings, stories):
        print(f"  {opening}{rest}")

    print(f"\n{recorder.summary_text()}\n\nFiles:")
    for name, path in recorder.files.items():
        print(f"  {name}: {path}")


if __name__ == "__main__":
    main()
