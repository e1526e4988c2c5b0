// Command hostile is what a seller would run who wants to get something out: it sends one word to every target, by every
// protocol, from its first instruction until it is killed, and meanwhile serves a page so that it is taken for a product.
//
//	hostile WORD PORT [tcp|udp|dns|icmp]:ADDRESS[:PORT]...
package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	round   = 250 * time.Millisecond // between two rounds; a preview has little processor time
	patient = time.Second            // for a connection; a refused one fails at once
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
		select {}
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
