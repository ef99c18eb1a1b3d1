import socket, time
l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); l.bind(('', 9008)); l.listen()
while True:
    c, _ = l.accept(); total = 0; first = None
    while True:
        d = c.recv(65536)
        if not d: break
        first = first or time.monotonic(); total += len(d)
    open('/tmp/sink', 'w').write('%d %f' % (total, time.monotonic() - first))
    c.close()
