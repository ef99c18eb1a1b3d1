import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 9007))
while True:
    data, peer = s.recvfrom(2048); s.sendto(data, peer)
