"""An SMTP server (it speaks first) with the aiosmtpd library; keeps the last message. Argument: the port."""

import sys
import threading

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Debugging

controller = Controller(Debugging(sys.stdout), hostname="127.0.0.1", port=int(sys.argv[1]))
controller.start()
threading.Event().wait()
