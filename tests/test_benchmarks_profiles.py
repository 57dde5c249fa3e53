"""Device profiles: every file that comes with the package, what a wrong one is told, and the verb that shows them."""

import json
import shutil

import pytest
from click.testing import CliRunner

from edge_seg.benchmarks import profile as profile_module
from edge_seg.benchmarks.profile import load_profile, profile_names
from edge_seg.benchmarks.runner import RUNNERS
from edge_seg.commands.profiles import profiles
from edge_seg.errors import ConfigError

PHONES = [name for name in profile_names() if load_profile(name).runner == "adb"]
DEVICES = [name for name in profile_names() if load_profile(name).soc not in ("host", "emulated")]


@pytest.fixture
def changed(tmp_path, root):
    """Copies the profile of a Pixel 6 with some text replaced."""

    def write(old, new, name="pixel_6"):
        text = (root / "benchmarks" / "profiles" / "pixel_6.toml").read_text()
        assert old in text
        path = tmp_path / f"{name}.toml"
        path.write_text(text.replace(old, new, 1))
        return path

    return write


def test_every_device_of_the_plan_has_a_profile():
    wanted = {"host_cpu_1t", "host_gpu", "emulated_arm", "raspberry_pi_4", "raspberry_pi_5", "jetson_orin_nano"}
    wanted |= {f"pixel_{n}" for n in (6, 7, 8, 9)}
    # one name, two chips: each has its own file
    wanted |= {"galaxy_s21_snapdragon_888", "galaxy_s21_exynos_2100", "galaxy_s23"}
    wanted |= {"galaxy_s24_snapdragon_8_gen_3", "galaxy_s24_exynos_2400"}
    assert wanted <= set(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads_and_names_a_runner_that_is_there(name):
    assert load_profile(name).runner in RUNNERS.names()


@pytest.mark.parametrize("name", DEVICES)
def test_every_fact_of_a_device_has_a_source_and_its_cores_are_complete(name):
    profile = load_profile(name)
    assert sum(cluster.count for cluster in profile.clusters) >= 4
    assert all(fact.source.strip() for fact in (*profile.clusters, *profile.hardware))
    assert {"gpu"} <= {fact.name for fact in profile.hardware}
    # a mask names cores of known number only, as many as there are threads at least
    assert not profile.cpus or len(profile.cpus) >= profile.threads


@pytest.mark.parametrize("name", PHONES)
def test_a_phone_says_when_it_may_start_and_how_long_it_rests(name):
    profile = load_profile(name)
    assert profile.start_below_c is not None
    assert profile.cool_down_s >= 60
    assert profile.sessions >= 3
    assert {"android_api_at_launch"} <= {fact.name for fact in profile.hardware}


@pytest.mark.parametrize("name", [n for n in PHONES if load_profile(n).clusters[0].cpus])
def test_a_phones_mask_names_no_small_core(name):
    profile = load_profile(name)
    small = min(profile.clusters, key=lambda cluster: cluster.clock_mhz)
    assert profile.cpus
    assert not set(profile.cpus) & set(small.cpus)


def test_a_gpu_is_asked_for_its_own_arithmetic_and_a_cpu_for_the_files():
    profile = load_profile("pixel_8")
    assert (profile.precision_for("gpu"), profile.precision_for("xnnpack")) == ("fp16", "file")


def test_a_file_that_is_dropped_into_the_folder_is_a_profile(tmp_path, root, monkeypatch):
    folder = tmp_path / "profiles"
    shutil.copytree(root / "benchmarks" / "profiles", folder)
    text = (folder / "raspberry_pi_5.toml").read_text().replace('"raspberry_pi_5"', '"orange_pi_5"')
    (folder / "orange_pi_5.toml").write_text(text)
    monkeypatch.setattr(profile_module.resources, "files", lambda package: folder)
    assert "orange_pi_5" in profile_names()
    assert load_profile("orange_pi_5").runner == "ssh"
    assert "orange_pi_5" in CliRunner().invoke(profiles, []).stdout


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("threads = 2", "thread = 2", "thread"),
        ("threads = 2", 'threads = "2"', "threads"),
        ("threads = 2", "", "threads"),
        ("threads = 2", "threads = 0", "at least 1"),
        ('precision = "file"', 'precision = "int8"', "precision"),
        ('confidence = "vendor"', 'confidence = "sure"', "confidence"),
        ('confidence = "vendor"', 'confidence = "vendor"\ncolour = "red"', "colour"),
        ('source = "LPDDR5-6400 on 64 bits"', 'source = " "', "a source"),
        ('source = "LPDDR5-6400 on 64 bits"\n', "", "source"),
        ('source = "torvalds/linux arch/arm64/boot/dts/exynos/google/gs101.dtsi"', 'source = ""', "a source"),
        ('cpu_mask = "0xc0"', 'cpu_mask = "0x0"', "names a core"),
        ('cpu_mask = "0xc0"', 'cpu_mask = "0x100"', "CPUs 0 to 7"),
        ('cpu_mask = "0xc0"', 'cpu_mask = "6,7"', "mask"),
        ("cpus = [6, 7]", "cpus = [6]", "2 cpus"),
        ("cpus = [6, 7]", "cpus = [5, 6]", "one cluster"),
        ("clock_mhz = 2802.0", "clock_mhz = 0.0", "clock_mhz"),
        ('python = "python3"', 'python = " "', "command"),
        ("sessions = 3", 'sessions = 3\naddress = "-oProxyCommand=x"', "address"),
        ('name = "pixel_6"', 'name = "pixel_60"', "the file's name"),
    ],
)
def test_a_wrong_profile_is_told_what_was_expected_found_and_to_do(changed, root, tmp_path, old, new, says):
    if old.startswith("python"):  # only boards have one
        path = tmp_path / "raspberry_pi_5.toml"
        path.write_text((root / "benchmarks/profiles/raspberry_pi_5.toml").read_text().replace(old, new, 1))
    else:
        path = changed(old, new)
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    assert says in str(caught.value)
    assert caught.value.expected
    assert caught.value.got
    assert caught.value.todo


def test_an_address_behind_the_name_says_which_device():
    assert load_profile("raspberry_pi_5@pi@kitchen:2222").address == "pi@kitchen:2222"
    with pytest.raises(ConfigError, match="dash"):
        load_profile("raspberry_pi_5@-oProxyCommand=reboot")
    with pytest.raises(ConfigError, match="raspberry_pi_5"):
        load_profile("raspbery_pi_5@pi@kitchen")


def test_the_verb_lists_all_profiles_and_shows_one_with_its_sources():
    listed = CliRunner().invoke(profiles, [])
    assert listed.exit_code == 0
    assert len(listed.stdout.splitlines()) == len(profile_names()) + 1
    shown = CliRunner().invoke(profiles, ["pixel_6"]).stdout
    assert "2 x Cortex-X1, 2802 MHz" in shown
    assert "gs101.dtsi" in shown
    document = json.loads(CliRunner().invoke(profiles, ["pixel_6", "--json"]).stdout)
    assert document["clusters"][0]["cpus"] == [6, 7]
    assert {row["name"] for row in json.loads(CliRunner().invoke(profiles, ["--json"]).stdout)} == set(profile_names())


def test_a_profile_that_is_not_there_is_an_error_with_the_nearest_names():
    result = CliRunner().invoke(profiles, ["pixel6"])
    assert isinstance(result.exception, ConfigError)
    assert "pixel_6" in str(result.exception)
