"""A language model small enough to train on a laptop CPU in seconds, for the examples in this folder.

Nothing is downloaded. The training text is made here from a small grammar of four-sentence stories such as

    Anna walked to the park. She saw a lovely dog. The sky was dark. She went home glad and tired.

and every adjective is either happy or sad, which gives the examples something to reward. `build_tiny_lm`
makes a word tokenizer, trains a two-layer Llama on these stories and saves both for any trainer to load.

Run this file to see what the model writes:

    python examples/tiny_lm.py
"""

import random
import tempfile
import warnings
from pathlib import Path

import datasets
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

PRONOUNS = {
    **dict.fromkeys(["Anna", "Clara", "Emma", "Julia", "Maria", "Nina"], "She"),
    **dict.fromkeys(["Ben", "David", "Leo", "Oscar", "Peter", "Tom"], "He"),
}
PLACES = ["beach", "farm", "forest", "garden", "lake", "library", "market", "park", "school", "station"]
MOVES = ["walked", "went", "ran", "drove"]
THINGS = ["bird", "boat", "book", "cake", "cat", "dog", "flower", "friend", "horse", "song"]
SCENES = ["sky", "weather", "road", "music", "food", "house"]

HAPPY = ["bright", "calm", "cheerful", "friendly", "glad", "kind", "lovely", "merry", "proud", "sweet"]
SAD = ["bitter", "cold", "dark", "dull", "gloomy", "grim", "lonely", "sick", "tired", "weary"]


def make_opening(rng):
    """Returns the first sentence of a story: the prompt of every example."""
    return f"{rng.choice(list(PRONOUNS))} {rng.choice(MOVES)} to the {rng.choice(PLACES)}."


def make_rest(opening, rng, happy_fraction=0.3):
    """Returns the rest of a story, in which about `happy_fraction` of the adjectives are happy ones."""

    def mood():
        return rng.choice(HAPPY if rng.random() < happy_fraction else SAD)

    who = PRONOUNS[opening.split()[0]]
    sentences = [
        f"{who} saw a {mood()} {rng.choice(THINGS)}.",
        f"{who} met a {mood()} and {mood()} {rng.choice(THINGS)}.",
        f"The {rng.choice(SCENES)} was {mood()}.",
        f"The {rng.choice(SCENES)} and the {rng.choice(SCENES)} were {mood()}.",
    ]
    ending = f"{who} went home {mood()} and {mood()}."
    return " ".join([*rng.sample(sentences, 2), ending])


def happy_share(text):
    """Returns the share of happy words among the happy and sad words of `text`; 0.0 where it has neither."""
    words = text.replace(".", " ").split()
    happy = sum(word in HAPPY for word in words)
    sad = sum(word in SAD for word in words)
    return happy / (happy + sad) if happy + sad else 0.0


def make_stories(count, seed=0):
    """Returns `count` whole stories."""
    rng = random.Random(seed)
    openings = [make_opening(rng) for _ in range(count)]
    return [f"{opening} {make_rest(opening, rng)}" for opening in openings]


def make_tokenizer(stories):
    """Makes a tokenizer of whole words, each with the space before it, and the full stop."""
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|\."), behavior="isolated")
    words.decoder = decoders.Fuse()
    special_tokens = ["<pad>", "<s>", "</s>", "<unk>"]
    words.train_from_iterator(
        stories, trainers.WordLevelTrainer(special_tokens=special_tokens, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        # Without this, TRL 0.23 passes the model `token_type_ids`, which Llama does not take.
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(tokenizer):
    """Returns an untrained two-layer Llama of about a hundred thousand weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def pretrain(model, tokenizer, stories, steps, batch_size=32, learning_rate=5e-3, seed=0):
    """Trains the model on whole stories, each ending in the end-of-sequence token. Returns the last loss."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    loss = torch.tensor(float("nan"))
    model.train()
    for _ in range(steps):
        texts = [story + tokenizer.eos_token for story in rng.sample(stories, batch_size)]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    return loss.item()


def build_tiny_lm(path, pretrain_steps=300, seed=0):
    """Makes the tokenizer and the model, pre-trains the model and saves both.

    Args:
        path: Folder to save to. Trainers get this path and not the model itself, because GRPO loads its
            reference model from where the policy came from.
        pretrain_steps: Steps of pre-training; 0 saves the untrained model.
        seed: Seed of the text, the weights and the order of training.

    Returns:
        The path, as a string.
    """
    torch.manual_seed(seed)
    stories = make_stories(4000, seed)
    tokenizer = make_tokenizer(stories)
    model = make_model(tokenizer)
    if pretrain_steps:
        pretrain(model, tokenizer, stories, pretrain_steps, seed=seed)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def set_up_process():
    """Settings that suit a model of this size, for the whole process."""
    # With matrices this small, threads wait for each other more than they work, above all on a busy machine.
    torch.set_num_threads(1)
    # Loading, saving and tokenizing take milliseconds; their progress bars would be most of the output.
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # TRL still says `gradient_checkpointing`, which transformers 5 has renamed; a user cannot change that.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)


def write_stories(model, tokenizer, openings, max_new_tokens=48):
    """Returns what the model writes after each of `openings`, sampled at temperature 1."""
    batch = tokenizer(openings, return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        out = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=max_new_tokens)
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def main():
    """Builds the model in a temporary folder and prints a few of its stories."""
    set_up_process()
    with tempfile.TemporaryDirectory() as folder:
        path = build_tiny_lm(Path(folder) / "tiny_lm")
        model = AutoModelForCausalLM.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
    print(f"{model.num_parameters():,} weights, {len(tokenizer)} tokens")
    rng = random.Random(1)
    openings = [make_opening(rng) for _ in range(6)]
    for opening, rest in zip(openings, write_stories(model, tokenizer, openings)):
        print(f"[happy words: {happy_share(rest):4.0%}] {opening}{rest}")


if __name__ == "__main__":
    main()
