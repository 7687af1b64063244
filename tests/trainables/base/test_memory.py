"""Free memory is read from the system's own files, within a container's limits."""

from trainables.base.memory import free_memory, whole_memory

GIB = 2**30


def test_free_memory_is_that_of_the_container_where_it_is_less(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 99 kB\nMemAvailable:   8388608 kB\nHugePages: 0\n")
    assert free_memory(meminfo, tmp_path) == 8 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    assert free_memory(meminfo, tmp_path) == 8 * GIB
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    assert free_memory(meminfo, tmp_path) == 2 * GIB


def test_the_memory_of_a_container_is_its_limit(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000 kB\nMemAvailable:    9000 kB\n")
    assert whole_memory(meminfo, tmp_path) == 16000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert whole_memory(meminfo, tmp_path) == 16000 * 1024
    (tmp_path / "memory.max").write_text("4096000\n")
    assert whole_memory(meminfo, tmp_path) == 4096000
