"""Train the quickstart's Mixtral from nothing, on two CPU cores, reproducibly for one torch version and processor kind.

    python quickstart/train.py [--minutes-of-steps STEPS] --out quickstart/model

The tokenizer, the text and the weights follow from the seed. Weights are stored in 16 bit (float16).
"""

import argparse
import json
import math
import time
from pathlib import Path

import tasks
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

SEQUENCE_TOKENS = 128
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% if not loop.last %}\n{% endif %}{% endfor %}"
)


def train_tokenizer(documents: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (any text can be encoded), digits one by one so that sums can be learnt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(vocab_size: int) -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        output_router_logits=True,
        router_aux_loss_coef=0.02,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.03,
    )
    config._experts_implementation = "grouped_mm"
    return MixtralForCausalLM(config)


def token_stream(world: tasks.World, tokenizer: PreTrainedTokenizerFast, tokens_per_batch: int):
    """Batches [rows, SEQUENCE_TOKENS] of packed documents, `<s> text </s>` after one another."""
    buffer: list[int] = []
    seed = 0
    while True:
        while len(buffer) < tokens_per_batch:
            seed += 1
            if seed > tasks.MAX_TRAINING_SEED:
                raise SystemExit("error: tasks.MAX_TRAINING_SEED ends too early: items are held out up to there")
            for ids in tokenizer(world.documents(seed, tasks.DOCUMENTS_PER_SEED))["input_ids"]:
                buffer.extend(ids)
                buffer.append(tokenizer.eos_token_id)
        yield torch.tensor(buffer[:tokens_per_batch]).view(-1, SEQUENCE_TOKENS)
        del buffer[:tokens_per_batch]


def learning_rate(step: int, steps: int, peak: float) -> float:
    warm = min(1.0, (step + 1) / 100)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(steps: int, out: Path, seed: int, peak: float, rows: int) -> None:
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    world = tasks.World()
    tokenizer = train_tokenizer(world.documents(*tasks.TOKENIZER_TEXT), vocab_size=1024)
    model = build_model(len(tokenizer))
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens in the vocabulary",
        flush=True,
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.time()
    stream = token_stream(world, tokenizer, rows * SEQUENCE_TOKENS)
    for step in range(steps):
        batch = next(stream)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.3f} {time.time() - started:.0f} s", flush=True)
        if step and step % 500 == 0:
            save(model, tokenizer, out)
    save(model, tokenizer, out)
    provenance = dict(
        steps=steps, rows=rows, sequence_tokens=SEQUENCE_TOKENS, seed=seed, peak=peak, torch=torch.__version__
    )
    (out / "training.json").write_text(json.dumps(provenance, indent=1) + "\n")


def save(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    state = {name: tensor.to(torch.float16) for name, tensor in model.state_dict().items()}
    half = build_model(len(tokenizer)).half()
    half.load_state_dict(state)
    half.config.output_router_logits = False
    half.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--rows", type=int, default=32, help="sequences per step")
    parser.add_argument("--peak", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    arguments = parser.parse_args()
    train(arguments.steps, arguments.out, arguments.seed, arguments.peak, arguments.rows)
