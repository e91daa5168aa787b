/* PID 1 of the development guest image: brings the machine up to the point where the guest agent can run, then
 * waits for it. Static, no shell: under software emulation each exec costs tens of milliseconds.
 *
 * 1. kernel file systems, modules (in the order of /modules/order), static slirp network
 * 2. /dev/vda as a dm-verity device keyed by dstack.rootfs_hash and dstack.rootfs_size of the kernel command line
 * 3. squashfs root, switch_root, start /usr/bin/dstack-guest-agent
 * 4. agent's exit code 0: power off. Anything else, and any error here, is said on the console and ends in a
 *    reset, which QEMU's -no-reboot turns into an exit (reason guest-reset, as after a kernel panic).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <net/if.h>
#include <net/route.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, MAX_SALT = 64 };

static const char agent_path[] = "/usr/bin/dstack-guest-agent";
static int timing;

static void say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    dprintf(STDERR_FILENO, "dstack-init: ");
    vdprintf(STDERR_FILENO, format, args);
    dprintf(STDERR_FILENO, "\n");
    va_end(args);
}

/* dstack.timing on the kernel command line: one line per step, seconds since the kernel started. */
static void mark(const char *step)
{
    struct timespec now;
    if (!timing) { return; }
    clock_gettime(CLOCK_BOOTTIME, &now);
    say("%ld.%03ld %s", (long)now.tv_sec, now.tv_nsec / 1000000, step);
}

static void end_with(int how)
{
    sync();
    reboot(how);
    for (;;) { pause(); }
}

static void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    dprintf(STDERR_FILENO, "dstack-init: fatal: ");
    vdprintf(STDERR_FILENO, format, args);
    dprintf(STDERR_FILENO, "\n");
    va_end(args);
    end_with(RB_AUTOBOOT);
}

static void mount_or_die(const char *what, const char *where, const char *type, unsigned long flags, const char *data)
{
    if (mount(what, where, type, flags, data) != 0) { die("mount %s on %s: %s", type, where, strerror(errno)); }
}

static char *slurp(const char *path, char *buffer, size_t size)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t used = 0, got;
    if (fd < 0) { die("open %s: %s", path, strerror(errno)); }
    while ((size_t)used < size - 1 && (got = read(fd, buffer + used, size - 1 - (size_t)used)) > 0) { used += got; }
    close(fd);
    buffer[used] = 0;
    return buffer;
}

/* The value of `key=` on the kernel command line, or NULL. */
static char *boot_arg(const char *line, const char *key, char *out, size_t size)
{
    const size_t key_size = strlen(key);
    for (const char *word = line; *word; word += strcspn(word, " \n"), word += strspn(word, " \n"))
    {
        const size_t word_size = strcspn(word, " \n");
        if (word_size <= key_size || strncmp(word, key, key_size) != 0 || word[key_size] != '=') { continue; }
        if (word_size - key_size - 1 >= size) { die("boot argument %s is too long", key); }
        memcpy(out, word + key_size + 1, word_size - key_size - 1);
        out[word_size - key_size - 1] = 0;
        return out;
    }
    return NULL;
}

static void load_modules(void)
{
    static char order[4096];
    char path[128];
    for (char *name = strtok(slurp("/modules/order", order, sizeof order), "\n"); name; name = strtok(NULL, "\n"))
    {
        snprintf(path, sizeof path, "/modules/%s", name);
        const int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) { die("open %s: %s", path, strerror(errno)); }
        if (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST) { die("load %s: %s", path, strerror(errno)); }
        close(fd);
        unlink(path); /* the initramfs is memory */
    }
}

static struct sockaddr inet(const char *address)
{
    struct sockaddr_in in = {.sin_family = AF_INET};
    struct sockaddr out;
    inet_pton(AF_INET, address, &in.sin_addr);
    memcpy(&out, &in, sizeof out);
    return out;
}

static void link_up(int fd, const char *name, const char *address, const char *mask)
{
    struct ifreq request;
    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, name);
    if (address)
    {
        request.ifr_addr = inet(address);
        if (ioctl(fd, SIOCSIFADDR, &request) != 0) { die("address of %s: %s", name, strerror(errno)); }
        request.ifr_netmask = inet(mask);
        if (ioctl(fd, SIOCSIFNETMASK, &request) != 0) { die("netmask of %s: %s", name, strerror(errno)); }
    }
    if (ioctl(fd, SIOCGIFFLAGS, &request) != 0) { die("flags of %s: %s", name, strerror(errno)); }
    request.ifr_flags = (short)(request.ifr_flags | IFF_UP);
    if (ioctl(fd, SIOCSIFFLAGS, &request) != 0) { die("bring up %s: %s", name, strerror(errno)); }
}

/* QEMU's user network hands out exactly these addresses: DHCP would only ask for what is known. */
static void start_network(void)
{
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) { die("socket: %s", strerror(errno)); }
    link_up(fd, "lo", NULL, NULL);
    if (access("/sys/class/net/eth0", F_OK) != 0)
    {
        say("no network card: the guest runs without a network");
        close(fd);
        return;
    }
    link_up(fd, "eth0", "10.0.2.15", "255.255.255.0");
    struct rtentry route;
    memset(&route, 0, sizeof route);
    route.rt_dst = inet("0.0.0.0");
    route.rt_genmask = inet("0.0.0.0");
    route.rt_gateway = inet("10.0.2.2");
    route.rt_flags = RTF_UP | RTF_GATEWAY;
    if (ioctl(fd, SIOCADDRT, &route) != 0) { die("default route: %s", strerror(errno)); }
    close(fd);
}

/* The superblock that veritysetup writes between the data and the hash tree (little endian; cryptsetup's
 * docs/on-disk-format, "verity"). It lies outside what the hash covers: only the salt is taken from it, and a wrong
 * salt gives a wrong root hash. Everything else is compared with what we expect. */
struct verity_superblock
{
    uint8_t signature[8];
    uint32_t version, hash_type;
    uint8_t uuid[16];
    char algorithm[32];
    uint32_t data_block_size, hash_block_size;
    uint64_t data_blocks;
    uint16_t salt_size;
    uint8_t pad[6];
    uint8_t salt[256];
};

static void dm_init(struct dm_ioctl *request, size_t size, uint32_t flags)
{
    memset(request, 0, size);
    request->version[0] = DM_VERSION_MAJOR;
    request->data_size = (uint32_t)size;
    request->data_start = sizeof *request;
    request->flags = flags;
    strcpy(request->name, "dstack-root");
}

static void open_verity(const char *device, const char *root_hash, uint64_t data_size)
{
    struct verity_superblock block;
    char salt[2 * MAX_SALT + 1] = "-";
    if (strlen(root_hash) != 64 || strspn(root_hash, "0123456789abcdef") != 64)
    {
        die("dstack.rootfs_hash is not 64 lower-case hex digits");
    }
    if (data_size == 0 || data_size % BLOCK != 0) { die("dstack.rootfs_size is not a multiple of %d", BLOCK); }
    const int disk = open(device, O_RDONLY | O_CLOEXEC);
    if (disk < 0) { die("open the root disk %s: %s", device, strerror(errno)); }
    if (pread(disk, &block, sizeof block, (off_t)data_size) != (ssize_t)sizeof block)
    {
        die("read the verity superblock of %s at %llu: the disk is too small", device, (unsigned long long)data_size);
    }
    close(disk);
    if (memcmp(block.signature, "verity\0\0", 8) != 0 || block.version != 1 || block.hash_type != 1 ||
        strncmp(block.algorithm, "sha256", sizeof block.algorithm) != 0 || block.data_block_size != BLOCK ||
        block.hash_block_size != BLOCK || block.data_blocks != data_size / BLOCK || block.salt_size > MAX_SALT)
    {
        die("%s has no verity superblock of the expected form at %llu", device, (unsigned long long)data_size);
    }
    for (unsigned i = 0; i < block.salt_size; ++i) { sprintf(salt + 2 * i, "%02x", block.salt[i]); }

    union
    {
        struct dm_ioctl request;
        char bytes[sizeof(struct dm_ioctl) + sizeof(struct dm_target_spec) + 1024];
    } table;
    const int control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
    if (control < 0) { die("open /dev/mapper/control: %s", strerror(errno)); }
    dm_init(&table.request, sizeof table, 0);
    if (ioctl(control, DM_DEV_CREATE, &table) != 0) { die("create the root device: %s", strerror(errno)); }

    dm_init(&table.request, sizeof table, DM_READONLY_FLAG);
    table.request.target_count = 1;
    struct dm_target_spec *target = (struct dm_target_spec *)(table.bytes + sizeof table.request);
    char *parameters = (char *)(target + 1);
    target->sector_start = 0;
    target->length = data_size / 512;
    strcpy(target->target_type, "verity");
    const unsigned long long blocks = data_size / BLOCK;
    snprintf(parameters, 1024, "1 %s %s %d %d %llu %llu sha256 %s %s 1 panic_on_corruption", device, device, BLOCK,
             BLOCK, blocks, blocks + 1, root_hash, salt);
    if (ioctl(control, DM_TABLE_LOAD, &table) != 0) { die("load the verity table: %s", strerror(errno)); }

    dm_init(&table.request, sizeof table, 0); /* DM_DEV_SUSPEND without the suspend flag resumes */
    if (ioctl(control, DM_DEV_SUSPEND, &table) != 0) { die("start the root device: %s", strerror(errno)); }
    close(control);
}

static void switch_root(void)
{
    static const char *const moved[] = {"/dev", "/proc", "/sys"};
    char target[32];
    for (unsigned i = 0; i < sizeof moved / sizeof *moved; ++i)
    {
        snprintf(target, sizeof target, "/root%s", moved[i]);
        mount_or_die(moved[i], target, NULL, MS_MOVE, NULL);
    }
    mount_or_die("tmpfs", "/root/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
    mount_or_die("tmpfs", "/root/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    if (chdir("/root") != 0) { die("chdir /root: %s", strerror(errno)); }
    unlink("/init");
    unlink("/modules/order");
    mount_or_die(".", "/", NULL, MS_MOVE, NULL);
    if (chroot(".") != 0 || chdir("/") != 0) { die("change root: %s", strerror(errno)); }
}

static pid_t start_agent(void)
{
    const pid_t pid = fork();
    if (pid < 0) { die("fork: %s", strerror(errno)); }
    if (pid == 0)
    {
        static char *const environment[] = {"PATH=/usr/bin", "HOME=/run", "LANG=C.UTF-8", NULL};
        char *const arguments[] = {(char *)agent_path, NULL};
        setsid();
        execve(agent_path, arguments, environment);
        say("fatal: start %s: %s", agent_path, strerror(errno));
        _exit(127);
    }
    return pid;
}

int main(void)
{
    char line[4096], hash[128], size[32];
    mount_or_die("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755");
    mount_or_die("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_or_die("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    slurp("/proc/cmdline", line, sizeof line);
    timing = strstr(line, "dstack.timing") != NULL;
    mark("init");
    reboot(RB_DISABLE_CAD);
    load_modules();
    mark("modules");
    start_network();
    mark("network");
    if (!boot_arg(line, "dstack.rootfs_hash", hash, sizeof hash) || !boot_arg(line, "dstack.rootfs_size", size, sizeof size))
    {
        die("dstack.rootfs_hash and dstack.rootfs_size must be on the kernel command line");
    }
    open_verity("/dev/vda", hash, strtoull(size, NULL, 10));
    mount_or_die("/dev/dm-0", "/root", "squashfs", MS_RDONLY | MS_NODEV | MS_NOSUID, NULL);
    mount_or_die("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    switch_root();
    mark("root");

    const pid_t agent = start_agent();
    for (;;)
    {
        int status = 0;
        const pid_t pid = waitpid(-1, &status, 0);
        if (pid != agent) { continue; } /* an orphan */
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        {
            say("power off");
            end_with(RB_POWER_OFF);
        }
        if (WIFSIGNALED(status)) { die("the guest agent was killed by signal %d", WTERMSIG(status)); }
        die("the guest agent ended with code %d", WEXITSTATUS(status));
    }
}
