"""Runs rdma-core's own test suite and prints one line for each test: its name, how it ended, why.

Called by tests/tests/pyverbs.rs, in a guest: run.py FOLDER DEVICE GID-INDEX, where FOLDER holds the suite as package
"tests". Needs Debian's python3-pyverbs or another build of pyverbs.
"""

import os
import sys
import unittest


class Lines(unittest.TestResult):
    def say(self, test, how, why=""):
        words = " ".join(str(why).split())
        print("\t".join([test.id(), how, words]), flush=True)

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


def main():
    folder, device, gid = sys.argv[1:]
    os.chdir(folder)
    # The suite's files import each other both ways.
    sys.path[:0] = [os.path.join(folder, "tests"), folder]
    # It reads its options where its own command line leaves them.
    from args_parser import parser

    sys.argv = ["run.py", "--dev", device, "--gid", gid]
    parser.parse_args()
    suite = unittest.defaultTestLoader.discover(os.path.join(folder, "tests"), top_level_dir=folder)
    suite.run(Lines())


main()
