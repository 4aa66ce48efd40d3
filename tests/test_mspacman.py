"""The Ms. Pac-Man agent plays, and what is read from the machine's memory is what the screen and the rewards say."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from scipy import ndimage
from tests.tap_samples import Recorded

from interlatent_live.agent_side.agents.mspacman import (
    ACTIONS,
    CHECKPOINT,
    MSPACMAN,
    STEP_PERIOD_S,
    act,
    make_critic,
    make_env,
    make_policy,
)
from interlatent_live.agent_side.agents.mspacman_ram import METRICS, OFFSET_PX, PELLETS, POWER_PELLETS, decode, eyes, read
from interlatent_live.agent_side.agents.reference import load_weights
from interlatent_live.agent_side.agents.train_mspacman import PixelPolicy, main, shape_reward
from interlatent_live.agent_side.rollout import make_tap, run
from interlatent_live.rollouts import AgentRollouts
from interlatent_live.stream.errors import AgentError

MAZE_ROWS = 172  # of the screen; below are lives, fruit and score
PACMAN, WALL, BLUE, WHITE = (210, 164, 74), (228, 111, 111), (66, 114, 194), (214, 214, 214)
GHOSTS = ((180, 122, 48), (84, 184, 153), (198, 89, 179), (200, 72, 72))


@dataclass
class Game:
    """Steps of a game: the memory and the screen before each, and what the step gave."""

    ram: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    screen: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    lives: list[int] = field(default_factory=list)

    def metric(self, name: str) -> npt.NDArray[np.float64]:
        return np.array([decode(ram)[name] for ram in self.ram])

    def pixels(self, colour: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
        """(steps, rows, columns): where the maze has that colour."""
        found: npt.NDArray[np.bool_] = np.all(np.array(self.screen)[:, :MAZE_ROWS] == colour, axis=-1)
        return found


@pytest.fixture(scope="module")
def game() -> Game:
    """500 steps of the policy from one seed: it eats power pellets and ghosts, and loses no life early."""
    env, policy, played = make_env(render=True), make_policy(), Game()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    observation, _ = env.reset(seed=0)
    for _ in range(500):
        played.ram.append(env.unwrapped.ale.getRAM())  # type: ignore[attr-defined]
        played.screen.append(np.array(env.render()))
        played.lives.append(env.unwrapped.ale.lives())  # type: ignore[attr-defined]
        observation, reward, over, _, _ = env.step(act(policy, observation))
        played.reward.append(float(reward))
        assert not over
    torch.set_num_threads(threads)
    env.close()
    return played


def test_the_checkpoint_is_whole_and_its_hidden_layer_is_the_tap_point() -> None:
    with safe_open(CHECKPOINT, framework="numpy") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    policy = make_policy()
    state = policy.state_dict()
    assert set(stored) - set(state) == {"v.weight", "v.bias"}
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor.numpy(), stored[name].astype(np.float32))
    (point,) = MSPACMAN.tap_points
    kept = []
    policy.get_submodule(point.removesuffix(":out")).register_forward_hook(lambda module, args, out: kept.append(out))
    policy(torch.zeros(1, 4, 84, 84))
    assert kept[0].shape == (1, 256)


def test_the_environment_is_as_the_policy_was_trained() -> None:
    env = make_env()
    assert env.observation_space.shape == (4, 84, 84)
    assert env.observation_space.dtype == np.uint8
    game: Any = env.unwrapped
    assert game.ale.getFloat("repeat_action_probability") == pytest.approx(0.25)
    meanings = [name.lower().replace("noop", "nothing") for name in game.get_action_meanings()]
    assert [name.replace("_", "") for name in ACTIONS] == meanings
    assert pytest.approx(1 / 15) == STEP_PERIOD_S
    frame = game.ale.getFrameNumber()
    env.reset(seed=0)
    frame = game.ale.getFrameNumber()
    env.step(0)
    assert game.ale.getFrameNumber() - frame == 4
    env.close()


def test_the_same_observation_gives_the_same_action_and_all_actions_are_drawn_by_their_chances() -> None:
    policy = make_policy()
    random = np.random.default_rng(0)
    still = random.integers(0, 255, (4, 84, 84), np.uint8)
    assert len({act(policy, still) for _ in range(5)}) == 1
    with torch.inference_mode():
        chances = policy(torch.from_numpy(still)[None].float() / 255)[0].softmax(-1).numpy()
    drawn = []
    for _ in range(400):  # one grey value of one pixel hardly changes the chances, but the checksum
        still[0, random.integers(84), random.integers(84)] += 1
        drawn.append(act(policy, still))
    found = np.bincount(drawn, minlength=len(ACTIONS)) / len(drawn)
    np.testing.assert_allclose(found, chances, atol=0.15)


def test_score_is_the_sum_of_rewards(game: Game) -> None:
    score = game.metric("score")
    assert score[0] == 0
    np.testing.assert_array_equal(np.diff(score), game.reward[:-1])
    assert max(game.reward) >= 200  # a ghost was among them


def test_lives_are_the_emulators(game: Game) -> None:
    np.testing.assert_array_equal(game.metric("lives"), game.lives)


def test_x_and_y_are_where_pacman_is_drawn(game: Game) -> None:
    where = game.pixels(PACMAN)
    count = where.sum((1, 2))
    rows, columns = np.mgrid[0:MAZE_ROWS, 0:160]
    drawn_x = (where * columns).sum((1, 2)) / np.maximum(count, 1)
    drawn_y = (where * rows).sum((1, 2)) / np.maximum(count, 1)
    alone = (count > 30) & (count < 60)  # eaten ghosts' eyes are of the same colour
    assert alone.mean() > 0.8
    off = np.hypot(drawn_x - game.metric("x") - OFFSET_PX[0], drawn_y - game.metric("y") - OFFSET_PX[1])[alone]
    assert np.median(off) < 2
    assert (off < 4).mean() > 0.93  # the rest: eyes that touch, and the tunnel


def _around(where: npt.NDArray[np.bool_], x: int, y: int) -> int:
    """Pixels of a sprite whose position bytes are x and y."""
    column, row = round(x + OFFSET_PX[0]), round(y + OFFSET_PX[1])
    return int(where[max(row - 6, 0) : row + 7, max(column - 5, 0) : column + 6].sum())


def test_ghosts_are_where_they_are_drawn_and_edible_when_they_are_blue(game: Game) -> None:
    own = [game.pixels(colour) for colour in GHOSTS]
    frightened = game.pixels(BLUE) | game.pixels(WHITE)
    right, seen = 0, {"own": 0, "edible": 0}
    for step, ram in enumerate(game.ram):
        for ghost in range(4):
            x, y, state = int(ram[6 + ghost]), int(ram[12 + ghost]), int(ram[1 + ghost])
            as_edible, as_own = _around(frightened[step], x, y), _around(own[ghost][step], x, y)
            if max(as_edible, as_own) < 30:
                continue  # not drawn in this frame: two sprites take turns
            seen["edible" if as_edible > as_own else "own"] += 1
            right += bool(state & 0x80) == (as_edible > as_own) and not eyes(state)
    assert min(seen.values()) > 150
    assert right / sum(seen.values()) > 0.97  # the screen is a frame late where a state changes


def test_a_ghost_that_was_eaten_is_eyes_until_it_is_home(game: Game) -> None:
    eaten = [step for step, reward in enumerate(game.reward) if reward >= 200]
    assert eaten
    for step in eaten:
        later = [[int(state) for state in game.ram[step + ahead][1:5]] for ahead in (1, 2, 3)]
        assert any(eyes(states[ghost]) for states in later for ghost in range(4))
    others = [ghost for ram in game.ram for ghost in range(4) if not eyes(int(ram[1 + ghost]))]
    assert len(others) > 1500


def test_distances_are_to_the_nearest_ghost_of_each_kind(game: Game) -> None:
    danger, prey = game.metric("ghost_distance"), game.metric("edible_ghost_distance")
    assert np.isnan(prey).any()
    assert np.isfinite(prey).any()
    for step, ram in enumerate(game.ram):
        apart = np.hypot(ram[6:10].astype(float) - ram[10], ram[12:16].astype(float) - ram[16])
        edible = (ram[1:5] & 0x80) > 0
        kills = ~edible & ~np.isin(ram[1:5] >> 4, (4, 6))
        for value, kind in ((danger[step], kills), (prey[step], edible)):
            if kind.any():
                assert value == pytest.approx(apart[kind].min())
            else:
                assert math.isnan(value)
    for step, reward in enumerate(game.reward):
        if reward >= 200:
            assert prey[step] < 20  # it was right there when it was eaten


def test_the_edible_timer_runs_in_seconds_while_ghosts_are_edible(game: Game) -> None:
    timer = game.metric("edible_timer")
    edible = np.array([(ram[1:5] & 0x80).any() for ram in game.ram])
    np.testing.assert_array_equal(timer > 0, edible)
    assert 7.5 < timer.max() <= 62 * 8 / 60
    begun = [step for step in range(1, len(timer)) if timer[step] > timer[step - 1] + 1]
    assert begun
    assert all(game.reward[step - 1] >= 50 for step in begun)  # a power pellet
    running = [step for step in range(len(timer) - 30) if timer[step] > 0 and (np.diff(timer[step : step + 31]) <= 0).all()]
    # a ghost that is eaten stops the game for a moment
    gone = [timer[step] - timer[step + 30] for step in running if timer[step + 30] > 0 and max(game.reward[step : step + 30]) < 200]
    assert np.median(gone) == pytest.approx(30 * STEP_PERIOD_S, abs=0.15)


def test_pellets_left_falls_by_one_for_each_that_is_eaten_and_fits_those_drawn(game: Game) -> None:
    left, power = game.metric("pellets_left"), np.array([(ram[117] & 0x3C).astype(int).item().bit_count() for ram in game.ram])
    assert left[0] == PELLETS
    eaten = -np.diff(left)
    reward = np.array(game.reward[:-1])
    np.testing.assert_array_equal(eaten, (reward % 50 == 10) + -np.diff(power))
    drawn = []
    for walls in game.pixels(WALL):
        labels, _ = ndimage.label(walls)
        shapes = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in ndimage.find_objects(labels)]
        drawn.append(sum(shape == (2, 4) for shape in shapes))
    missing = left - power - drawn  # sprites hide some
    assert missing.min() >= -1  # the screen is a frame late
    assert np.median(missing) <= 1
    assert missing.max() <= 6


def test_power_pellets_are_where_they_are_eaten_and_drawn(game: Game) -> None:
    distance, x, y = (game.metric(name) for name in ("power_pellet_distance", "x", "y"))
    gone = 0
    for step in range(len(game.ram) - 1):
        before, after = int(game.ram[step][117]), int(game.ram[step + 1][117])
        for bit, at_x, at_y in POWER_PELLETS:
            if before & bit and not after & bit:
                gone += 1
                assert game.reward[step] >= 50
                assert math.hypot(at_x - x[step + 1], at_y - y[step + 1]) < 12
                assert distance[step] == pytest.approx(math.hypot(at_x - x[step], at_y - y[step]))
                assert distance[step] < 20
    assert gone >= 3
    solid = game.pixels(WALL)
    for bit, at_x, at_y in POWER_PELLETS:
        column, row = math.ceil(at_x + OFFSET_PX[0]), round(at_y + OFFSET_PX[1])
        box: npt.NDArray[np.bool_] = np.all(solid[:, row - 2 : row + 3, column - 2 : column + 2], axis=(1, 2))
        there = np.array([bool(ram[117] & bit) for ram in game.ram])
        assert box[there].mean() > 0.3  # they blink
        assert not box[~there].any()


def test_what_a_later_maze_hides_is_unknown() -> None:
    ram = np.zeros(128, np.uint8)
    ram[0], ram[117] = 1, 0x3C
    values = decode(ram)
    assert math.isnan(values["pellets_left"])
    assert math.isnan(values["power_pellet_distance"])
    ram[0] = ram[117] = 0
    values = decode(ram)
    assert values["pellets_left"] == PELLETS
    assert math.isnan(values["power_pellet_distance"])  # none is left
    assert math.isnan(values["edible_ghost_distance"])


def test_metrics_describe_the_moment_before_the_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    env, policy = make_env(), make_policy()
    observation, _ = env.reset(seed=3)
    expected, hidden = [], []
    for _ in range(90):
        expected.append(list(read(env).values()))
        with torch.inference_mode():
            hidden.append(policy[0](torch.from_numpy(np.asarray(observation))[None].float() / 255)[0].numpy())
        observation, *_ = env.step(act(policy, observation))
    env.close()
    path, asked = tmp_path / "run.mcap", iter(range(90))
    with make_tap(MSPACMAN, record=path, endpoint="") as tap:
        run(MSPACMAN, tap, fast=True, seed=3, render=True, stop=lambda: next(asked, None) is None)
        status = tap.status()
    assert status["metric_failures"] == status["step_failures"] == status["silent_points"] == 0
    recorded = Recorded(path)
    assert recorded.manifest.metrics == tuple(metric.spec for metric in METRICS)
    assert {spec.scope for spec in recorded.manifest.metrics} == {"observation"}
    assert (recorded.manifest.environment, recorded.manifest.observation_shape) == ("ALE/MsPacman-v5", ())
    np.testing.assert_allclose(recorded.column("metrics"), expected, equal_nan=True)
    np.testing.assert_allclose(recorded.activations("body.8:out"), hidden, atol=1e-4)
    assert all("observation" not in batch.columns for batch in recorded.batches)
    assert recorded.pictures
    assert (recorded.pictures[0].height, recorded.pictures[0].width) == (210, 160)
    assert not caplog.records


def test_rollouts_have_its_scores_and_value_from_the_tapped_layer_on() -> None:
    rollouts = AgentRollouts("mspacman", "body.8:out", "body.8:out")
    policy, critic = MSPACMAN.make_policy(), make_critic()
    pixels = torch.rand(3, 4, 84, 84, generator=torch.Generator().manual_seed(0))
    effect = rollouts.effect
    assert effect.value is not None
    with torch.inference_mode():
        hidden = policy.get_submodule("body")(pixels)
        torch.testing.assert_close(effect.head(hidden), policy(pixels))
        torch.testing.assert_close(effect.value(hidden), critic(pixels)[:, 0])
        # a point that is not followed by a mere sequence goes through hooks, in parts
        by_hook = AgentRollouts("mspacman", "body.8:out", "pi:in")
        assert by_hook.effect.value is None  # the critic has no such point
        many = hidden.repeat(400, 1)
        torch.testing.assert_close(by_hook.effect.head(many), policy(pixels).repeat(400, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_scores_as_in_training() -> None:
    report = run(MSPACMAN, None, episodes=8, fast=True, seed=1)
    assert np.mean(report.returns) > 2000
    assert len(set(report.returns)) > 4


def test_shaped_rewards_keep_sign_and_order() -> None:
    shaped = shape_reward(np.array([0.0, 10, 50, 200, 1600, -10]))
    assert shaped[0] == 0
    assert (np.diff(shaped[:-1]) > 0).all()
    assert shaped[-1] == -shaped[1] == pytest.approx(-0.7 * np.log(2))


@pytest.mark.slow
def test_the_trainer_begins_and_its_checkpoint_is_of_the_committed_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pac.safetensors"
    arguments = ["--device", "cpu", "--envs", "8", "--steps", "1536", "--out", str(out)]
    assert main([*arguments, "--init", str(CHECKPOINT)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["steps"], answer["updates"]) == (1536, 3)
    trained = PixelPolicy()
    like = trained.state_dict()
    found, begun = load_weights("mspacman", out, like), load_weights("mspacman", CHECKPOINT, like)
    moved = {name: float((found[name] - begun[name]).abs().max()) for name in like}
    assert all(0 < moved[name] < 0.1 for name in like), moved
    with pytest.raises(SystemExit):  # what may have taken hours is not overwritten
        main(arguments)


def test_a_checkpoint_of_another_shape_names_the_tensor(tmp_path: Path) -> None:
    like = {"body.0.weight": torch.zeros(32, 4, 8, 7)}
    with pytest.raises(AgentError, match=r"'body.0.weight' of shape \(32, 4, 8, 8\), not \(32, 4, 8, 7\)"):
        load_weights("mspacman", CHECKPOINT, like)
