"""PPO by hand: a new, tiny model and its critic learn from two rules to answer in Chinese and at a wanted length.

python examples/ppo_by_hand.py   (about ten seconds on one core; `espalier.rl` has the pieces, docs/rl.md the why)
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
            "ppo",
            model_config=MODEL,
            vocab_size=400,
            dataset=str(data["prompts"]),
            eval_dataset=str(data["prompts_dev"]),
            rewards=[{"type": "language", "language": "zh"}, {"type": "length", "target": 12}],
            group_size=4,
            rollout_prompts=16,
            per_device_train_batch_size=16,
            ppo_epochs=2,
            max_new_tokens=12,
            cutoff_len=128,
            learning_rate=1e-2,
            kl_coef=0.01,
            max_steps=24,
        )
        for number, places in rl.rollouts(training):
            answers = rl.sample(training, places, number)  # 4 to each of 16 prompts
            trees = rl.score(training, answers)  # extras: scores (4,)
            trees = rl.measure(training, trees)  # old_logprobs, ref_logprobs, old_values (4, tokens)
            trees = rl.advantages(
                training, trees
            )  # the KL is paid, then GAE: advantages, returns (4, tokens)
            for part in rl.minibatches(training, trees, number):  # two passes, all 16 prompts a step
                numbers = rl.update(training, part)  # policy and critic
            if number % 2 == 0:
                of_critic = f"value loss {numbers['value_loss']:.3f}"
                print(f"step {training.steps:2d}  reward {numbers['reward']:.3f}  {of_critic}", flush=True)
        held_out = rl.evaluate(training)
        print(f"held out: reward {held_out['reward']:.3f} ± {held_out['reward_stderr']:.3f}")


if __name__ == "__main__":
    main()
