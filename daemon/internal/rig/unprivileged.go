package rig

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// ownDir makes dir for the files of one server and returns its absolute path,
// and the user who is to run the server: nobody if root started the test, and
// otherwise nil, the test's own user. The directories above dir, which must be
// below the temporary directory, are then made passable (o+x).
func ownDir(dir string) (string, *syscall.Credential, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	if os.Geteuid() != 0 {
		return dir, nil, nil
	}
	owner, err := nobody()
	if err != nil {
		return "", nil, err
	}
	return dir, owner, passable(dir)
}

// giveAway makes dir and everything in it belong to owner, if there is one.
func giveAway(dir string, owner *syscall.Credential) error {
	if owner == nil {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
}

// copyFile puts a copy of from, readable by its owner alone, into the file to.
// Servers that run as another user could not read the original.
func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}
