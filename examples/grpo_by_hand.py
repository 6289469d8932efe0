"""GRPO by hand: a new, tiny model learns from a rule alone to answer Chinese questions in Chinese.

python examples/grpo_by_hand.py   (about ten seconds on one core; `espalier.rl` has the pieces, docs/rl.md the why)
"""

import tempfile
from pathlib import Path

from espalier import rl
from espalier.demo.data import write_demo_data

MODEL = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 128, "tie_word_embeddings": True}  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = write_demo_data(Path(folder), seed=0, sizes={"prompts": 96, "prompts_dev": 16})
        training = rl.begin(
            "grpo",
            model_config=MODEL,
            vocab_size=400,
            dataset=str(data["prompts"]),
            eval_dataset=str(data["prompts_dev"]),
            rewards=[{"type": "language", "language": "zh"}],
            group_size=8,
            rollout_prompts=8,
            per_device_train_batch_size=8,
            max_new_tokens=12,
            cutoff_len=128,
            learning_rate=1e-2,
            kl_coef=0.01,
            max_steps=24,
        )
        for number, places in rl.rollouts(training):
            answers = rl.sample(training, places, number)  # 8 to each of 8 prompts
            trees = rl.score(training, answers)  # extras: scores (8,)
            trees = rl.measure(training, trees)  # old_logprobs, ref_logprobs (8, tokens)
            trees = rl.advantages(training, trees)  # each answer against its group
            for part in rl.minibatches(training, trees, number):
                numbers = rl.update(training, part)
            if number % 4 == 0:
                print(
                    f"step {training.steps:2d}  reward {numbers['reward']:.3f}  kl {numbers['kl']:.3f}",
                    flush=True,
                )
        held_out = rl.evaluate(training)
        print(f"held out: reward {held_out['reward']:.3f} ± {held_out['reward_stderr']:.3f}")


if __name__ == "__main__":
    main()
