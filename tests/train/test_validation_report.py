"""--report: the process that makes it has the lowest priority from its beginning; the training does not wait for it."""

import os

import train.validation_report as reports


def test_the_process_has_the_lowest_priority_from_its_beginning(tmp_path):
    process = reports._process_of(tmp_path / "none.npz")  # it will end with an error, as there is no such file
    try:
        status = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert status is None, "it has ended before it could be looked at"
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == reports.LOWEST_PRIORITY
    finally:
        process.kill()
        process.communicate()
