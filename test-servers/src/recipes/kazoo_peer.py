"""Takes and gives back kazoo's Lock for whoever asks over TCP; each connection is a client with a session of its own."""
import socketserver
import sys

packages, ip, port, hosts = sys.argv[1:]
sys.path.append(packages)

from kazoo.client import KazooClient  # noqa: E402


class Peer(socketserver.StreamRequestHandler):
    def handle(self):
        client, locks = None, {}
        try:
            for line in self.rfile:
                verb, _, path = line.decode().strip().partition(" ")
                if verb == "hello":
                    answer = "ready"
                else:
                    if client is None:
                        client = KazooClient(hosts=hosts, timeout=10)
                        client.start(timeout=20)
                    if verb in ("lock", "try"):
                        lock = client.Lock(path, "kazoo", extra_lock_patterns=("-lock-",))
                        held = lock.acquire(blocking=verb == "lock")
                        locks[path] = lock
                        answer = "held" if held else "busy"
                    else:
                        locks.pop(path).release()
                        answer = "free"
                self.wfile.write((answer + "\n").encode())
        finally:
            if client is not None:
                client.stop()
                client.close()


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server((ip, int(port)), Peer).serve_forever()
