"""Does a command that is shown to others name no path of this machine?"""

import shlex

import pytest

from autolora_trainer.hub.public import public_command


@pytest.mark.parametrize(
    "typed, public",
    [
        ("/opt/x/run.py --task_name mrpc --bf16", "python run.py --task_name mrpc --bf16"),
        ("run.py --train_file /a/b/train.jsonl", "python run.py --train_file $DATA/train.jsonl"),
        ("run.py --train_file=../b/train.csv", "python run.py --train_file=$DATA/train.csv"),
        ("run.py --output_dir /home/me/outputs/x/", "python run.py --output_dir x"),
        ("run.py --output_dir ./outputs/run.one", "python run.py --output_dir run.one"),
        ("run.py --config /home/me/c.yaml", "python run.py --config c.yaml"),
        ("run.py --config=/home/me/settings.json", "python run.py --config=settings.json"),
        ("run.py /home/me/c.yaml", "python run.py c.yaml"),
        ("run.py --model_name_or_path FacebookAI/roberta-base", None),
        ("run.py --model_name_or_path /models/roberta", "python run.py --model_name_or_path roberta"),
        ("run.py --hub_model_id me/x --hub_token hf_abc", "python run.py --hub_model_id me/x --hub_token ***"),
        ("run.py --token=abc --api-key k --x 1", "python run.py --token=*** --api-key *** --x 1"),
        ("run.py --db_password a b --client_secret c", "python run.py --db_password *** *** --client_secret ***"),
        ("HF_TOKEN=abc HF_HOME=/c/hf python3.11 /a/run.py", "HF_TOKEN=*** HF_HOME=hf python3.11 run.py"),
        ("run.py --tokenizer_name gpt2 --max_new_tokens 5", "python run.py --tokenizer_name gpt2 --max_new_tokens 5"),
        ("run.py --run_name hf_abcdefghijKLM1", "python run.py --run_name ***"),
        ("run.py --endpoint https://u:p@host/x", "python run.py --endpoint $URL"),
        ("""run.py --x '{"p": "/home/me/x", "token": "abc"}'""", """python run.py --x '{"p": "x", "token": "***"}'"""),
        ("run.py --lora_target_modules '.*\\.(query|value)$'", None),
        ("run.py --train_file '/a b/my file.jsonl'", "python run.py --train_file $DATA/'my file.jsonl'"),
        ("run.py --train_file 'C:\\Users\\me\\train.jsonl'", "python run.py --train_file $DATA/train.jsonl"),
        ("/usr/bin/autolora --seed 1 --learning_rate -1e-4", "autolora --seed 1 --learning_rate -1e-4"),
        ("/x/autolora_trainer/__main__.py --seed 1", "python -m autolora_trainer --seed 1"),
        ("/usr/bin/python3 -m torch.distributed.run /x/run.py", "python -m torch.distributed.run run.py"),
        ("run.py --output_dir / --cache_dir ~ --x ../..", "python run.py --output_dir . --cache_dir '~' --x ."),
    ],
)  # fmt: skip
def test_public_command(typed, public):
    shown = public_command(shlex.split(typed))
    assert shown == (f"python {typed}" if public is None else public)
    assert public_command(shlex.split(shown)) == shown


def test_public_command_knows_what_is_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").touch()
    (tmp_path / "1").touch()
    (tmp_path / "mrpc").mkdir()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "rows").touch()
    typed = ["run_glue.py", "--train_file", "train.jsonl", "--seed", "1", "--task_name", "mrpc"]
    typed += ["--model_name_or_path", "owner/name", "--test_file", str(tmp_path / "rows")]
    assert public_command(typed) == (
        "python run_glue.py --train_file $DATA/train.jsonl --seed 1 --task_name mrpc --model_name_or_path name "
        "--test_file $DATA/rows"
    )
