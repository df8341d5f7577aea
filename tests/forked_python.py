"""What stands in for Python in the programs of the tests, and in those that they start: fork_server.py runs them.

forked_python.py SERVER PYTHON ARGUMENT...: SERVER is the socket, PYTHON what runs whatever is no program. Signals go to
the program, and its status is this process's own.
"""

import json
import os
import signal
import socket
import struct
import sys

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(server, python, *command):
    if not command or (command[0].startswith("-") and command[0] not in ("-m", "-c")):
        os.execv(python, [python, *command])
    request = {
        "command": command,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "python": os.path.join(os.path.dirname(server), "bin/python"),
    }
    here = socket.socket(socket.AF_UNIX)
    os.chdir(os.path.dirname(server))  # the path of a socket may have about 100 characters
    here.connect(os.path.basename(server))
    socket.send_fds(here, [json.dumps(request).encode()], [0, 1, 2])
    for number in HANDED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: here.send(bytes([number])))
    (status,) = struct.unpack("i", here.recv(4))
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


main(*sys.argv[1:])
