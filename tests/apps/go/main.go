// Both ends of a connection as Go's own client and server have them: an app of the test world.
//
//	ends serve TCP_PORT HTTP_PORT
//	ends ask ADDRESS TCP_PORT HTTP_PORT
//
// The TCP server says in a line whom it sees and where it is, then echoes. The HTTP server answers a POST with the same
// line and the checksum of what it got. The client prints a line for each: its name, its own address, its peer, what the
// server said, how many bytes it sent, and the checksums of what it sent and of what came back or arrived.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
)

func payload() []byte {
	bytes := make([]byte, 100_000)
	for i := range bytes {
		bytes[i] = byte(i*31 + i>>8)
	}
	return bytes
}

func checksum(bytes []byte) string { return fmt.Sprintf("%x", sha256.Sum256(bytes)) }

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func witness(connection net.Conn) {
	defer connection.Close()
	fmt.Fprintf(connection, "%v %v\n", connection.RemoteAddr(), connection.LocalAddr())
	io.Copy(connection, connection)
}

func answer(response http.ResponseWriter, request *http.Request) {
	body := must(io.ReadAll(request.Body))
	own := request.Context().Value(http.LocalAddrContextKey)
	fmt.Fprintf(response, "%s %v\n%s", request.RemoteAddr, own, checksum(body))
}

func serve(tcpPort, httpPort string) {
	web := must(net.Listen("tcp", ":"+httpPort))
	go http.Serve(web, http.HandlerFunc(answer))
	listener := must(net.Listen("tcp", ":"+tcpPort))
	for {
		go witness(must(listener.Accept()))
	}
}

func askTCP(address string) {
	connection := must(net.Dial("tcp", address)).(*net.TCPConn)
	reader := bufio.NewReader(connection)
	line := must(reader.ReadString('\n'))
	sent := payload()
	must(connection.Write(sent))
	must(0, connection.CloseWrite())
	received := must(io.ReadAll(reader))
	fmt.Println("tcp", connection.LocalAddr(), connection.RemoteAddr(), strings.TrimSpace(line),
		len(sent), checksum(sent), checksum(received))
}

func askHTTP(address string) {
	var own, peer net.Addr
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		own, peer = got.Conn.LocalAddr(), got.Conn.RemoteAddr()
	}}
	sent := payload()
	request := must(http.NewRequest("POST", "http://"+address+"/", bytes.NewReader(sent)))
	response := must(http.DefaultClient.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace))))
	line, arrived, _ := strings.Cut(string(must(io.ReadAll(response.Body))), "\n")
	fmt.Println("http", own, peer, line, len(sent), checksum(sent), arrived)
}

func main() {
	switch args := os.Args[1:]; args[0] {
	case "serve":
		serve(args[1], args[2])
	case "ask":
		askTCP(net.JoinHostPort(args[1], args[2]))
		askHTTP(net.JoinHostPort(args[1], args[3]))
	}
}
