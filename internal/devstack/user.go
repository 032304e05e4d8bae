package devstack

import (
	"crypto/sha256"
	"fmt"
	"os"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// user is whom PostgreSQL runs as where this program is root, which it refuses.
type user struct {
	name     string
	uid, gid int
}

func (u *user) credential() *syscall.Credential {
	return &syscall.Credential{Uid: uint32(u.uid), Gid: uint32(u.gid)}
}

// postgresUser is nil where this program is not root.
func postgresUser() (*user, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		found, err := osuser.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(found.Uid)
		gid, err2 := strconv.Atoi(found.Gid)
		if err1 == nil && err2 == nil && uid != 0 {
			return &user{name, uid, gid}, nil
		}
	}
	return nil, fmt.Errorf("PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as: run this as an ordinary user")
}

// reachable tells whether others than root may enter every folder above dir.
func reachable(dir string) bool {
	for dir = filepath.Dir(dir); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

// postgresDir is the data folder of PostgreSQL: in the stack's folder, or, where root runs
// the stack and the other user cannot get there (a checkout below /root), in /var/lib.
func (s *Stack) postgresDir() string {
	inside := filepath.Join(s.cfg.Dir, "postgres")
	if os.Geteuid() != 0 || reachable(inside) {
		return inside
	}
	return filepath.Join("/var/lib/outboxsaga", fmt.Sprintf("%x", sha256.Sum256([]byte(s.cfg.Dir)))[:12])
}

// cacheDir: root's own cache is closed to the user PostgreSQL runs as.
func cacheDir() (string, error) {
	if dir := os.Getenv("STACK_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/var/cache/outboxsaga", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder: set STACK_CACHE: %w", err)
	}
	return filepath.Join(dir, "outboxsaga"), nil
}
