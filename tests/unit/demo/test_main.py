import sys

from demo.__main__ import main
from demo.processes import Leader, Processes, save_leaders


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.touch()
    assert main(["--build", str(tmp_path)]) == 2
    assert precious.exists()
    assert "choose another folder" in capsys.readouterr().err


def test_stopping_when_nothing_runs_is_no_error(tmp_path, capsys):
    save_leaders(tmp_path / "running.json", [Leader("gone", 2**22 + 1, 1.0)])
    assert main(["--stop", "--build", str(tmp_path)]) == 0
    assert "Nothing was running" in capsys.readouterr().out
    assert not (tmp_path / "running.json").exists()


def test_a_demo_that_runs_is_not_disturbed_by_another_and_can_be_stopped(tmp_path, capsys):
    processes = Processes(tmp_path / "logs", record=tmp_path / "running.json")
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    processes.start("sleeper", sleeper, env={}, cwd=tmp_path)
    try:
        assert main(["--build", str(tmp_path)]) == 2
        assert "make down" in capsys.readouterr().err
        assert processes.ended() == {}
        assert main(["--stop", "--build", str(tmp_path)]) == 0
        assert "1 processes ended" in capsys.readouterr().out
        assert list(processes.ended()) == ["sleeper"]
    finally:
        processes.stop()
