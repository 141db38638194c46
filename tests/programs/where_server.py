"""A TCP server that says the name of its host first, then echoes line by line. Argument: the port."""

import os
import socketserver
import sys

NAME = os.path.basename(os.getcwd())


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write((NAME + "\n").encode())
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
