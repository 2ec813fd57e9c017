// Both ends of a connection as Java's own clients and servers have them: an app of the test world. The same programs as
// go/main.go, where it is said what they print; HttpClient does not tell its addresses.

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.concurrent.Executors;

public class Ends {
    static byte[] payload() {
        byte[] bytes = new byte[100_000];
        for (int i = 0; i < bytes.length; i++) {
            bytes[i] = (byte) (i * 31 + (i >> 8));
        }
        return bytes;
    }

    static String checksum(byte[] bytes) throws Exception {
        StringBuilder hex = new StringBuilder();
        for (byte part : MessageDigest.getInstance("SHA-256").digest(bytes)) {
            hex.append(String.format("%02x", part));
        }
        return hex.toString();
    }

    static String text(SocketAddress address) {
        InetSocketAddress at = (InetSocketAddress) address;
        String host = at.getAddress().getHostAddress().split("%")[0];
        return (host.contains(":") ? "[" + host + "]" : host) + ":" + at.getPort();
    }

    static String line(InputStream in) throws IOException {
        StringBuilder line = new StringBuilder();
        for (int next = in.read(); next != '\n'; next = in.read()) {
            if (next < 0) {
                throw new IOException("the line ends early: " + line);
            }
            line.append((char) next);
        }
        return line.toString();
    }

    static void witness(Socket socket) {
        try (socket) {
            OutputStream out = socket.getOutputStream();
            String ends = text(socket.getRemoteSocketAddress()) + " " + text(socket.getLocalSocketAddress()) + "\n";
            out.write(ends.getBytes(StandardCharsets.US_ASCII));
            socket.getInputStream().transferTo(out);
        } catch (IOException error) {
            System.err.println(error);
        }
    }

    static void answer(HttpExchange exchange) throws IOException {
        try {
            String sum = checksum(exchange.getRequestBody().readAllBytes());
            String ends = text(exchange.getRemoteAddress()) + " " + text(exchange.getLocalAddress());
            byte[] body = (ends + "\n" + sum).getBytes(StandardCharsets.US_ASCII);
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        } catch (Exception error) {
            throw new IOException(error);
        }
    }

    static void serve(int tcpPort, int httpPort) throws Exception {
        HttpServer web = HttpServer.create(new InetSocketAddress(httpPort), 0);
        web.createContext("/", Ends::answer);
        web.start();
        ServerSocket listener = new ServerSocket(tcpPort);
        var threads = Executors.newCachedThreadPool();
        while (true) {
            Socket socket = listener.accept();
            threads.execute(() -> witness(socket));
        }
    }

    static void print(String name, String own, String peer, String said, byte[] sent, String back) throws Exception {
        System.out.println(String.join(" ", name, own, peer, said, "" + sent.length, checksum(sent), back));
    }

    static void askSocket(String host, int port) throws Exception {
        try (Socket socket = new Socket(host, port)) {
            InputStream in = socket.getInputStream();
            String said = line(in);
            byte[] sent = payload();
            socket.getOutputStream().write(sent);
            socket.shutdownOutput();
            String back = checksum(in.readAllBytes());
            String own = text(socket.getLocalSocketAddress());
            print("tcp", own, text(socket.getRemoteSocketAddress()), said, sent, back);
        }
    }

    static void askChannel(String host, int port) throws Exception {
        try (SocketChannel channel = SocketChannel.open(new InetSocketAddress(InetAddress.getByName(host), port))) {
            InputStream in = Channels.newInputStream(channel);
            String said = line(in);
            byte[] sent = payload();
            ByteBuffer left = ByteBuffer.wrap(sent);
            while (left.hasRemaining()) {
                channel.write(left);
            }
            channel.shutdownOutput();
            String back = checksum(in.readAllBytes());
            print("tcp", text(channel.getLocalAddress()), text(channel.getRemoteAddress()), said, sent, back);
        }
    }

    static void askHttp(String host, int port) throws Exception {
        String authority = (host.contains(":") ? "[" + host + "]" : host) + ":" + port;
        byte[] sent = payload();
        HttpRequest request = HttpRequest.newBuilder(URI.create("http://" + authority + "/"))
            .POST(HttpRequest.BodyPublishers.ofByteArray(sent))
            .build();
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        String[] body = client.send(request, HttpResponse.BodyHandlers.ofString()).body().split("\n");
        print("http", "-", "-", body[0], sent, body[1]);
    }

    public static void main(String[] args) throws Exception {
        if (args[0].equals("serve")) {
            serve(Integer.parseInt(args[1]), Integer.parseInt(args[2]));
        } else {
            askSocket(args[1], Integer.parseInt(args[2]));
            askChannel(args[1], Integer.parseInt(args[2]));
            askHttp(args[1], Integer.parseInt(args[3]));
        }
    }
}
