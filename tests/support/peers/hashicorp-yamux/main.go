// An independent yamux for the interoperation tests: HashiCorp's own, over one TCP connection to 127.0.0.1:PORT.
//
//	peer server PORT [COUNT]    accepts streams and echoes each; half-close is passed on; with COUNT it drops the
//	                            connection after accepting so many
//	peer client PORT COUNT SIZE opens COUNT streams at once, sends SIZE bytes on each and its FIN, reads the echo to
//	                            its end and compares; pings before and after; says go-away at the end
//
// It prints one JSON line when it is done: {"ok": true, "streams": n} or {"ok": false, "error": "..."}.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"

	"github.com/hashicorp/yamux"
)

func main() {
	streams, err := run(os.Args[1:])
	result := map[string]any{"ok": err == nil, "streams": streams}
	if err != nil {
		result["error"] = err.Error()
	}
	json.NewEncoder(os.Stdout).Encode(result)
}

func run(args []string) (int, error) {
	connection, err := net.Dial("tcp", "127.0.0.1:"+args[1])
	if err != nil {
		return 0, err
	}
	config := yamux.DefaultConfig()
	config.LogOutput = os.Stderr
	if args[0] == "server" {
		session, err := yamux.Server(connection, config)
		if err != nil {
			return 0, err
		}
		limit := 0
		if len(args) > 2 {
			limit, _ = strconv.Atoi(args[2])
		}
		return serve(session, connection, limit)
	}
	session, err := yamux.Client(connection, config)
	if err != nil {
		return 0, err
	}
	defer session.Close()
	count, _ := strconv.Atoi(args[2])
	size, _ := strconv.Atoi(args[3])
	return count, open(session, count, size)
}

func serve(session *yamux.Session, connection net.Conn, limit int) (int, error) {
	var done sync.WaitGroup
	count := 0
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			done.Wait()
			return count, nil // the other side closed the connection
		}
		count++
		if count == limit {
			connection.Close()
			return count, nil
		}
		done.Add(1)
		go func() {
			defer done.Done()
			io.Copy(stream, stream)
			stream.Close()
		}()
	}
}

func open(session *yamux.Session, count, size int) error {
	if _, err := session.Ping(); err != nil {
		return err
	}
	failures := make(chan error, count)
	for n := 0; n < count; n++ {
		go func(n int) { failures <- exchange(session, n, size) }(n)
	}
	for n := 0; n < count; n++ {
		if err := <-failures; err != nil {
			return err
		}
	}
	if _, err := session.Ping(); err != nil {
		return err
	}
	return session.GoAway()
}

func exchange(session *yamux.Session, n, size int) error {
	stream, err := session.OpenStream()
	if err != nil {
		return err
	}
	body := make([]byte, size)
	for at := range body {
		body[at] = byte(at*31 + at>>8 + n)
	}
	go func() {
		stream.Write(body)
		stream.Close() // its half of the stream; reading goes on
	}()
	echo, err := io.ReadAll(stream)
	if err != nil {
		return err
	}
	if !bytes.Equal(echo, body) {
		return fmt.Errorf("stream %d: %d bytes came back of %d, or others", n, len(echo), size)
	}
	return nil
}
