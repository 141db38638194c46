"""An HTTP/1.1 server that takes 50 ms for each answer: the name of its host, also as header x-cluster. Arguments: the port, the address."""

import http.server
import os
import sys
import time

NAME = os.path.basename(os.getcwd())


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        time.sleep(0.05)
        body = (NAME + "\n").encode()
        self.send_response(200)
        self.send_header("x-cluster", NAME)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


Server((sys.argv[2], int(sys.argv[1])), Handler).serve_forever()
