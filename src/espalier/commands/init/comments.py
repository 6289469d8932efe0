"""What each group of keys in a file of `espalier init` is for, in English and in Chinese."""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "zh"]

LANGUAGES: tuple[Language, ...] = ("en", "zh")

_ENGLISH = {
    "goal pretrain": "Pretraining: a model learns to continue texts.",
    "goal sft": "Supervised fine-tuning (SFT): a model learns to answer as the data does.",
    "goal reward": "A reward model: it learns which of two answers is better.",
    "goal dpo": "DPO: a model learns to prefer the better one of two answers.",
    "goal kto": "KTO: a model learns from single answers that are marked good or bad.",
    "goal ppo": "PPO: a model writes answers, and learns from the scores that they get; a critic foresees them.",
    "goal grpo": "GRPO: a model writes several answers to each prompt, and learns from their scores.",
    "goal evaluate": "An exam: a model is asked questions, and its answers are counted.",
    "lead": "Look before it runs: espalier inspect {file}\n"
    "Run: espalier run {file}        The same command again continues where it stopped.",
    "stage": "What is done, and the folder that the results are written to (report.html is in it).",
    "model": "The model to begin with: a local folder or a hub id.",
    "new model": "A new model from scratch, of this shape, with a tokenizer that is trained on the data.",
    "data pretrain": 'Texts: .txt files, or records with a column "text". A list of files, globs or hub ids.',
    "data sft": 'Conversations: records with "messages", "conversations", or "instruction" and "output".',
    "data reward": 'Pairs: records with "prompt", "chosen" and "rejected".',
    "data dpo": 'Pairs: records with "prompt", "chosen" and "rejected".',
    "data kto": 'Marked answers: records with "prompt", "completion" and "label" (true or false).',
    "data ppo": "Prompts: any records; their answers are not read.",
    "data grpo": 'Prompts: any records, with a "reference" where the reward compares with one.',
    "tasks": "Exams: names (mmlu, ceval, clue; then data_dir is the folder of their data), or task files.",
    "exam limit": "Only so many questions of each task; remove the line to ask all.",
    "held out": "The share of the data that is not trained on and shows whether the model has learned.",
    "length": "The most tokens of a record, and what happens to longer ones: error, drop or trim.",
    "lora": "LoRA trains a small adapter and leaves the model as it is, which needs little memory.\n"
    "`full` trains all weights. A larger rank can learn more.",
    "full": "All weights are trained. `lora` needs much less memory.",
    "reference": "How strongly the model is held to what it was at the beginning.",
    "reward": "What scores the answers: reward_model (a trained one), or reward_function (a rule, or FILE.py:FUNCTION).",
    "sampling": "The answers that are written: the most tokens, and how they are drawn.\n"
    "kl_coef: the price of moving away from the first model.",
    "rate": "How fast and how long it learns.",
    "batch": "A step learns from so many records: the first number times the second, on each process.",
    "cpu": "The type of the numbers: auto takes what this processor is fast in.",
    "gpu": "The type of the numbers; gradient_checkpointing needs less memory and a third more time.",
    "gpus": "As on one GPU; strategy: how the processes, one on each GPU, share the work.",
    "log": "Numbers are written each so many steps, and checkpoints.",
}

_CHINESE = {
    "goal pretrain": "预训练：模型学习续写文本。",
    "goal sft": "指令微调（SFT）：模型学习像数据那样回答。",
    "goal reward": "奖励模型：学习判断两个回答中哪一个更好。",
    "goal dpo": "DPO：模型学习偏好两个回答中较好的一个。",
    "goal kto": "KTO：模型从标注为好或坏的单个回答中学习。",
    "goal ppo": "PPO：模型写出回答，并从回答得到的分数中学习；评论家（critic）预估分数。",
    "goal grpo": "GRPO：模型对每个提示写出多个回答，并从它们的分数中学习。",
    "goal evaluate": "考试：向模型提问，并统计它的回答。",
    "lead": "运行前先查看：espalier inspect {file}\n运行：espalier run {file}        再次运行同一命令会从中断处继续。",
    "stage": "要做什么，以及结果写入的目录（其中有 report.html）。",
    "model": "起始模型：本地目录或 Hugging Face 模型名。",
    "new model": "从零开始的新模型，结构如下；分词器在数据上训练。",
    "data pretrain": '文本：.txt 文件，或带有 "text" 列的记录。可以列出多个文件、通配符或数据集名。',
    "data sft": '对话：带有 "messages"、"conversations"，或 "instruction" 与 "output" 的记录。',
    "data reward": '成对数据：带有 "prompt"、"chosen" 和 "rejected" 的记录。',
    "data dpo": '成对数据：带有 "prompt"、"chosen" 和 "rejected" 的记录。',
    "data kto": '带标注的回答：带有 "prompt"、"completion" 和 "label"（true 或 false）的记录。',
    "data ppo": "提示：任何记录都可以；其中的回答不会被读取。",
    "data grpo": '提示：任何记录都可以；如果奖励要与标准答案比较，需要 "reference" 列。',
    "tasks": "考试：名称（mmlu、ceval、clue；此时用 data_dir 指定数据所在目录），或任务文件。",
    "exam limit": "每个任务只问这么多题；删除这一行则全部都问。",
    "held out": "留出不训练的数据比例，用来检验模型是否学到了东西。",
    "length": "一条记录最多的 token 数，以及更长的记录如何处理：error、drop 或 trim。",
    "lora": "LoRA 只训练一个小的适配器，模型本身不变，需要的显存很少。\n`full` 训练全部权重。rank 越大，能学到的越多。",
    "full": "训练全部权重。`lora` 需要的内存少得多。",
    "reference": "模型被约束在初始模型附近的强度。",
    "reward": "给回答打分的方式：reward_model（训练好的奖励模型），或 reward_function（规则，或 FILE.py:FUNCTION）。",
    "sampling": "写出的回答：最多的 token 数，以及如何采样。\nkl_coef：偏离初始模型的代价。",
    "rate": "学习的速度和时长。",
    "batch": "每一步学习的记录数：每个进程上，第一个数乘以第二个数。",
    "cpu": "数值类型：auto 会选择本机处理器计算较快的类型。",
    "gpu": "数值类型；gradient_checkpointing 节省显存，时间增加约三分之一。",
    "gpus": "与单个 GPU 相同；strategy：每个 GPU 一个进程，各进程如何分担计算。",
    "log": "每隔多少步记录一次数值，以及保存检查点。",
}

COMMENTS: dict[Language, dict[str, str]] = {"en": _ENGLISH, "zh": _CHINESE}
