// Command hostile is what a seller would run who wants to get something out: it sends one word to every target, by every
// protocol, from its first instruction until it is killed, and meanwhile serves a page so that it is taken for a product.
//
//	hostile WORD PORT [tcp|udp|dns|icmp]:ADDRESS[:PORT]... [hold:FIRST-LAST]...
//
// With hold it takes all local TCP ports of a range, so that nobody in its pod can connect from one.
package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	round   = 250 * time.Millisecond // between two rounds; a preview has little processor time
	patient = time.Second            // for a connection; a refused one fails at once
	eager   = 10 * time.Millisecond  // between two tries for a port that somebody has
)

func main() {
	// Whoever asks us to end is not heard.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "hostile: a word and a port are missing")
		os.Exit(2)
	}
	word := os.Args[1]
	for _, target := range os.Args[3:] {
		protocol, address, _ := strings.Cut(target, ":")
		if protocol == "hold" {
			go hold(address)
			continue
		}
		go func() {
			told := false
			for {
				if err := send(protocol, address, word); err != nil && !told {
					// Once a target: what the kernel itself refuses is worth reading in the log.
					fmt.Fprintln(os.Stderr, target, err)
					told = true
				}
				time.Sleep(round)
			}
		}()
	}
	serve(os.Args[2])
}

func send(protocol, address, word string) error {
	switch protocol {
	case "tcp":
		connection, err := net.DialTimeout("tcp", address, patient)
		if err != nil {
			return err
		}
		defer connection.Close()
		_, err = fmt.Fprintln(connection, word)
		return err
	case "udp":
		return datagram(address, []byte(word))
	case "dns":
		return datagram(address+":53", question(word))
	case "icmp":
		return echo(address, word)
	}
	return fmt.Errorf("unknown protocol %q", protocol)
}

// hold binds every port of a range that is free, and keeps it.
func hold(ports string) {
	var first, last int
	if _, err := fmt.Sscanf(ports, "%d-%d", &first, &last); err != nil {
		fmt.Fprintln(os.Stderr, "hold:", ports, err)
		return
	}
	// What it takes to start another process, and to accept a connection.
	spare := make([]int, 64)
	for i := range spare {
		spare[i], _ = syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	}
	var busy []int
	for port := first; port <= last; port++ {
		taken, err := take(port)
		if err != nil {
			// A process may have only so many files; the next one goes on.
			for _, file := range spare {
				syscall.Close(file)
			}
			rest := []string{os.Args[0], os.Args[1], "0", fmt.Sprintf("hold:%d-%d", port, last)}
			_, err = os.StartProcess("/proc/self/exe", rest, &os.ProcAttr{Files: []*os.File{nil, nil, os.Stderr}})
			fmt.Fprintln(os.Stderr, "hold: from", port, "on in another process:", err)
			break
		}
		if !taken {
			busy = append(busy, port)
		}
	}
	// Whoever had one of these lets go of it some time.
	for {
		busy = slices.DeleteFunc(busy, func(port int) bool {
			taken, _ := take(port)
			return taken
		})
		time.Sleep(eager)
	}
}

// take binds a port for good, if nobody else has it. An error says that there can be no more sockets.
func take(port int) (bool, error) {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	if syscall.Bind(socket, &syscall.SockaddrInet4{Port: port}) == nil {
		return true, nil
	}
	syscall.Close(socket)
	return false, nil
}

func datagram(address string, payload []byte) error {
	connection, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer connection.Close()
	_, err = connection.Write(payload)
	return err
}

// question asks for the address of WORD.example (RFC 1035, section 4.1).
func question(word string) []byte {
	header := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	name := append([]byte{byte(len(word))}, word...)
	name = append(name, "\x07example\x00"...)
	return append(append(header, name...), 0, 1, 0, 1)
}

// echo sends an echo request (RFC 792) by whichever socket the kernel gives: one of its own kind for pings, or a raw one.
func echo(address, word string) error {
	ip := net.ParseIP(address).To4()
	if ip == nil {
		return fmt.Errorf("%q is no IPv4 address", address)
	}
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, syscall.IPPROTO_ICMP)
	if err != nil {
		socket, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP)
	}
	if err != nil {
		return fmt.Errorf("no socket for ICMP: %w", err)
	}
	defer syscall.Close(socket)
	packet := append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, word...)
	binary.BigEndian.PutUint16(packet[2:], checksum(packet))
	return syscall.Sendto(socket, packet, 0, &syscall.SockaddrInet4{Addr: [4]byte(ip)})
}

// checksum is the Internet checksum (RFC 1071).
func checksum(packet []byte) uint16 {
	var sum uint32
	for i := 0; i < len(packet); i += 2 {
		high := uint32(packet[i]) << 8
		if i+1 < len(packet) {
			high |= uint32(packet[i+1])
		}
		sum += high
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// serve answers every connection with the same page. Without a port it goes on without one.
func serve(port string) {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		// Not select: without another goroutine the runtime would call that a deadlock, and end.
		for {
			time.Sleep(time.Hour)
		}
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			continue
		}
		go func() {
			defer connection.Close()
			_ = connection.SetDeadline(time.Now().Add(patient))
			_, _ = connection.Read(make([]byte, 4096))
			fmt.Fprint(connection, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n")
		}()
	}
}
