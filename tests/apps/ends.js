// Both ends of a connection as Node's own clients and servers have them: an app of the test world. The same programs as
// go/main.go, where it is said what they print.
'use strict';

const crypto = require('crypto');
const http = require('http');
const net = require('net');

const PAYLOAD = Buffer.from(Array.from({ length: 100_000 }, (_, i) => (i * 31 + (i >> 8)) & 0xff));

const checksum = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');
const text = (address, port) => (address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`);
const own = (socket) => text(socket.localAddress, socket.localPort);
const peer = (socket) => text(socket.remoteAddress, socket.remotePort);

function collect(stream, done) {
  const parts = [];
  stream.on('data', (part) => parts.push(part));
  stream.on('end', () => done(Buffer.concat(parts)));
}

function serve(tcpPort, httpPort) {
  const web = http.createServer((request, response) => {
    const ends = `${peer(request.socket)} ${own(request.socket)}`;
    collect(request, (body) => response.end(`${ends}\n${checksum(body)}`));
  });
  web.listen(httpPort);
  const witness = net.createServer({ allowHalfOpen: true }, (socket) => {
    socket.write(`${peer(socket)} ${own(socket)}\n`);
    socket.pipe(socket);
  });
  witness.listen(tcpPort);
}

function show(name, ownAddress, peerAddress, said, back) {
  console.log(name, ownAddress, peerAddress, said, PAYLOAD.length, checksum(PAYLOAD), back);
}

function askTcp(host, port) {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ host, port, allowHalfOpen: true });
    socket.on('error', reject);
    let ends;
    socket.on('connect', () => {
      ends = [own(socket), peer(socket)];
      socket.end(PAYLOAD);
    });
    collect(socket, (bytes) => {
      const end = bytes.indexOf('\n');
      show('tcp', ...ends, bytes.subarray(0, end).toString(), checksum(bytes.subarray(end + 1)));
      resolve();
    });
  });
}

function askHttp(host, port) {
  return new Promise((resolve, reject) => {
    const request = http.request({ host, port, method: 'POST' }, (response) => {
      const ends = [own(response.socket), peer(response.socket)];
      collect(response, (body) => {
        const [said, arrived] = body.toString().split('\n');
        show('http', ...ends, said, arrived);
        resolve();
      });
    });
    request.on('error', reject);
    request.end(PAYLOAD);
  });
}

// The fetch of the standard library does not tell its addresses.
async function askFetch(host, port) {
  const response = await fetch(`http://${text(host, port)}/`, { method: 'POST', body: PAYLOAD });
  const [said, arrived] = (await response.text()).split('\n');
  show('http', '-', '-', said, arrived);
}

async function ask(host, tcpPort, httpPort) {
  await askTcp(host, tcpPort);
  await askHttp(host, httpPort);
  await askFetch(host, httpPort);
  process.exit(0);
}

const [mode, ...rest] = process.argv.slice(2);
(mode === 'serve' ? serve : ask)(...rest);
