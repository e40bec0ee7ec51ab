"""Runs rdma-core's own test suite and prints one line for each test: its name, how it ended, why.

Called by tests/tests/pyverbs.rs in a guest of the stand-in and by `cargo xtask vm` in a QEMU guest:
run.py FOLDER DEVICE GID-INDEX [NETDEV [FILE]], where FOLDER holds the suite as package "tests" and FILE, such as test_rdmacm,
is the only part of it to run. Needs Debian's python3-pyverbs or another build of pyverbs.
"""

import os
import sys
import unittest


class Lines(unittest.TestResult):
    def __init__(self, results):
        super().__init__()
        self.results = results

    def say(self, test, how, why=""):
        words = " ".join(str(why).split())
        print("\t".join([test.id(), how, words]), file=self.results, flush=True)

    def addSuccess(self, test):
        self.say(test, "pass")

    def addSkip(self, test, reason):
        self.say(test, "skip", reason)

    def addFailure(self, test, err):
        self.say(test, "FAIL", self._exc_info_to_string(err, test))

    def addError(self, test, err):
        self.say(test, "FAIL", self._exc_info_to_string(err, test))

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.addError(test, err)

    def addExpectedFailure(self, test, err):
        self.say(test, "pass")

    def addUnexpectedSuccess(self, test):
        self.say(test, "FAIL", "it was expected to fail")


def pair_with(netdev):
    """Tells the tests of rdma_cm which network device has the addresses.

    They look for it below the RDMA device's own PCI function; PVRDMA's is the function beside it.
    """
    from tests.base import RDMATestCase

    def get_ip_mac(self, dev, port, idx):
        self.args.append([dev, port, idx, *self.get_ip_mac_address(netdev)])

    RDMATestCase._get_ip_mac = get_ip_mac


def main():
    folder, device, gid, netdev, only = (sys.argv[1:] + [None, None])[:5]
    os.chdir(folder)
    # The suite's files import each other both ways.
    sys.path[:0] = [os.path.join(folder, "tests"), folder]
    # It reads its options where its own command line leaves them.
    from args_parser import parser

    sys.argv = ["run.py", "--dev", device, "--gid", gid]
    parser.parse_args()
    if netdev:
        pair_with(netdev)
    loader = unittest.defaultTestLoader
    if only:
        suite = loader.loadTestsFromName("tests." + only)
    else:
        suite = loader.discover(os.path.join(folder, "tests"), top_level_dir=folder)
    # What the tests print themselves goes elsewhere.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    suite.run(Lines(results))


main()
